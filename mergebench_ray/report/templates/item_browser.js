(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("item-data").textContent);
  const find = (id) => document.getElementById(id);
  const PAGE = 20;
  let page = 0;

  const element = (name, text, className) => {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const option = (value, text) => {
    const made = element("option", text);
    made.value = value;
    return made;
  };
  const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);

  // Of models i < j only (i, j) is stored; the other way round the difference changes its sign.
  const pairedResult = (a, b, task) => {
    const row = data.pairs[`${Math.min(a, b)},${Math.max(a, b)}`];
    const found = row && row[task];
    if (!found || a === b) return null;
    const [items, difference, error, better, worse] = found;
    return a < b
      ? { items, difference, error, better, worse }
      : { items, difference: -difference, error, better: worse, worse: better };
  };
  const difference = (result) =>
    `${signed(result.difference)}${result.error === null ? "" : ` ± ${result.error.toFixed(3)}`}`;

  const chosen = () => ({ a: Number(find("model-a").value), b: Number(find("model-b").value), task: Number(find("task").value) });
  const answerOf = (model, task, item) => {
    const column = data.answers[model] && data.answers[model][task];
    return (column && column[item]) || null;
  };

  const matches = (item, a, b, which, text) => {
    const [first, second] = [a ? a[1] : null, b ? b[1] : null];
    if (!a) return false;
    if (which === "low" && !(first !== null && first < 1)) return false;
    if (["differ", "a", "b"].includes(which)) {
      if (first === null || second === null || first === second) return false;
      if (which !== "differ" && (first > second) !== (which === "a")) return false;
    }
    const words = [...item, a && data.texts[a[0]], b && data.texts[b[0]]];
    return !text || words.some((word) => word && word.toLowerCase().includes(text));
  };

  const answerCell = (answer, title, lower) => {
    const cell = element("td", undefined, "text");
    cell.dataset.title = title;
    if (answer === null) {
      cell.append(element("span", "not asked", "soft"));
      return cell;
    }
    const score = answer[1];
    const kind = score === null || lower ? "" : score >= 1 ? " right" : score <= 0 ? " wrong" : " partly";
    cell.append(element("span", score === null ? "no score by item" : `score ${Number(score.toFixed(3))}`, `score${kind}`));
    cell.append(element("pre", data.texts[answer[0]] || "(empty answer)"));
    if (answer.length > 2) cell.append(element("p", `judge: ${data.texts[answer[2]]}`, "soft"));
    return cell;
  };

  const drawPaired = ({ a, b, task }) => {
    const result = b < 0 ? null : pairedResult(a, b, task);
    const name = data.tasks[task].name;
    find("paired").textContent = b < 0 || a === b ? "Choose another model B to compare item by item."
      : !result ? `No items of ${name} with scores of both models.`
      : `${name}: A − B = ${difference(result)} over ${result.items} items that both answered; `
        + `A higher on ${result.better}, B higher on ${result.worse}, equal on ${result.items - result.better - result.worse}.`;
    const table = find("paired-table");
    table.replaceChildren();
    const rows = data.tasks.map((one, index) => [one, b < 0 ? null : pairedResult(a, b, index)]).filter(([, one]) => one);
    if (rows.length < 2) return;
    const head = table.createTHead().insertRow();
    ["task", "A − B (paired)", "items", "A higher", "B higher", "equal"].forEach((text, index) =>
      head.append(element("th", text, index ? "" : "text")));
    const body = table.createTBody();
    for (const [one, found] of rows) {
      const row = body.insertRow();
      const beyond = found.error !== null && Math.abs(found.difference) > 2 * found.error;
      row.append(element("td", `${one.domain}: ${one.name}`, "text"));
      row.append(element("td", difference(found), beyond ? "beyond" : ""));
      const equal = found.items - found.better - found.worse;
      [found.items, found.better, found.worse, equal].forEach((count) => row.append(element("td", String(count))));
    }
  };

  const draw = () => {
    const { a, b, task } = chosen();
    drawPaired({ a, b, task });
    const one = data.tasks[task];
    const text = find("text").value.trim().toLowerCase();
    const found = one.items
      .map((item, index) => ({ item, first: answerOf(a, task, index), second: b < 0 ? null : answerOf(b, task, index) }))
      .filter(({ item, first, second }) => matches(item, first, second, find("which").value, text));
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(page, pages - 1);
    const left = one.total - one.items.length;
    const asked = one.items.filter((_, index) => answerOf(a, task, index)).length;
    find("item-count").textContent = !asked ? `Model A was not asked ${one.name}.`
      : `${one.name}${one.metric ? `, scored by ${one.metric}` : ""}: ${found.length} of the ${asked} items of model A`
        + `${left ? ` (of this task ${left} items are not in this page)` : ""}, page ${page + 1} of ${pages}`;
    const body = find("item-table").tBodies[0];
    body.replaceChildren();
    for (const { item, first, second } of found.slice(page * PAGE, (page + 1) * PAGE)) {
      const row = body.insertRow();
      const name = element("td", undefined, "text");
      name.append(element("b", item[0]), element("code", `prompt ${item[1]}`));
      if (item.length > 2) name.append(element("pre", item[2]));
      if (item[3]) name.append(element("p", `expected: ${item[3]}`, "soft"));
      row.append(name, answerCell(first, "A", one.lower));
      if (b >= 0) row.append(answerCell(second, "B", one.lower));
    }
    find("item-table").tHead.rows[0].cells[2].hidden = b < 0;
    find("previous").disabled = page === 0;
    find("next").disabled = page >= pages - 1;
  };

  data.models.forEach((name, index) => find("model-a").append(option(index, name)));
  find("model-b").append(option(-1, "none"));
  data.models.forEach((name, index) => find("model-b").append(option(index, name)));
  data.tasks.forEach((task, index) =>
    find("task").append(option(index, task.domain === task.name ? task.name : `${task.domain}: ${task.name}`)));
  const comparable = data.models.findIndex((_, index) => data.tasks.some((_, task) => pairedResult(0, index, task)));
  find("model-b").value = String(comparable);
  for (const id of ["model-a", "model-b", "task", "which"]) {
    find(id).addEventListener("change", () => { page = 0; draw(); });
  }
  find("text").addEventListener("input", () => { page = 0; draw(); });
  find("previous").addEventListener("click", () => { page -= 1; draw(); });
  find("next").addEventListener("click", () => { page += 1; draw(); });
  draw();
})();
