document.querySelectorAll("table.sortable th button").forEach((button) => button.addEventListener("click", () => {
  const header = button.parentElement, body = header.closest("table").tBodies[0];
  const column = header.cellIndex, down = header.getAttribute("aria-sort") === "ascending";
  header.parentElement.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => row.cells[column].dataset.value;
  [...body.rows].sort((a, b) => {
    if ((value(a) === "") !== (value(b) === "")) return value(a) === "" ? 1 : -1;
    const order = header.classList.contains("text")
      ? value(a).localeCompare(value(b)) : Number(value(a)) - Number(value(b));
    return down ? -order : order;
  }).forEach((row) => body.append(row));
}));
