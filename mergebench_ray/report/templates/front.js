(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("front-data").textContent);
  const find = (id) => document.getElementById(id);
  const scatter = find("front-scatter").querySelector(".plotly-graph-div");
  const profile = find("front-profile") && find("front-profile").querySelector(".plotly-graph-div");
  const sliders = [...document.querySelectorAll(".front-weight")];
  const front = data.models.slice(0, data.front), others = data.models.slice(data.front);
  // The order of the scatter chart's traces.
  const OTHERS = 0, FRONT = 1, PICKED = 4;
  let picked = data.chosen;

  const axes = () => (find("front-across") ? [Number(find("front-across").value), Number(find("front-upwards").value)] : [0, 1]);
  const column = (rows, place, of = "values") => rows.map((one) => one[of][place]);

  const show = () => {
    const one = data.models[picked];
    const values = data.titles.map((title, place) =>
      `${title} ${one.values[place].toFixed(3)} ± ${one.errors[place].toFixed(3)}`);
    const chosen = picked === data.chosen ? " (the chosen one)" : "";
    find("front-picked").textContent = `${one.label}${chosen}: ${[...values, ...(one.missed ? [one.missed] : [])].join(", ")}`;
    find("front-recipe").textContent = one.recipe;
    find("front-file").textContent = one.file ? `${one.file}: mergebench-ray merge makes a model of it`
      : "method and hyper-parameters; a whole recipe is written for each of the front when the search is over";
    const [across, upwards] = axes();
    Plotly.restyle(scatter, { x: [[one.values[across]]], y: [[one.values[upwards]]] }, [PICKED]);
    if (profile) Plotly.restyle(profile, { y: [one.values] }, [front.length]);
  };

  const byWeights = () => {
    const weights = sliders.map((slider) => Number(slider.value));
    const sum = (one) => one.values.reduce((total, value, place) =>
      total + weights[place] * (data.minimised[place] ? -value : value), 0);
    sliders.forEach((slider, place) => { slider.parentElement.querySelector("output").textContent = weights[place]; });
    picked = front.reduce((best, one, place) => (sum(one) > sum(front[best]) ? place : best), 0);
    const quoted = (name) => (/^[A-Za-z_][\w.-]*$/.test(name) ? name : JSON.stringify(name));
    const given = data.names.map((name, place) => [quoted(name), weights[place]]).filter(([, weight]) => weight > 0);
    find("front-choice").textContent = given.length
      ? `choice: {weights: {${given.map(([name, weight]) => `${name}: ${weight}`).join(", ")}}}` : "";
    show();
  };

  const turn = () => {
    const [across, upwards] = axes();
    const rows = [others, front, data.references.map((values) => ({ values, errors: [] })), [data.models[data.chosen]]];
    Plotly.restyle(scatter, {
      x: rows.map((some) => column(some, across)),
      y: rows.map((some) => column(some, upwards)),
    }, [0, 1, 2, 3]);
    Plotly.restyle(scatter, {
      "error_x.array": [column(front, across, "errors")],
      "error_y.array": [column(front, upwards, "errors")],
    }, [FRONT]);
    Plotly.relayout(scatter, { "xaxis.title.text": data.axes[across], "yaxis.title.text": data.axes[upwards] });
    show();
  };

  const copy = async () => {
    try {
      await navigator.clipboard.writeText(find("front-recipe").textContent);
    } catch {
      const range = document.createRange();
      range.selectNodeContents(find("front-recipe"));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      document.execCommand("copy");
    }
    find("front-copy").textContent = "copied";
    setTimeout(() => { find("front-copy").textContent = "copy the recipe"; }, 1500);
  };

  scatter.on("plotly_click", ({ points: [point] }) => {
    if (point.curveNumber === FRONT) picked = point.pointNumber;
    else if (point.curveNumber === OTHERS) picked = data.front + point.pointNumber;
    else return;
    find("front-choice").textContent = "";
    show();
  });
  if (profile) {
    profile.on("plotly_click", ({ points: [point] }) => {
      if (point.curveNumber >= front.length) return;
      picked = point.curveNumber;
      find("front-choice").textContent = "";
      show();
    });
  }
  sliders.forEach((slider) => slider.addEventListener("input", byWeights));
  for (const id of ["front-across", "front-upwards"]) if (find(id)) find(id).addEventListener("change", turn);
  find("front-copy").addEventListener("click", copy);
  show();
})();
