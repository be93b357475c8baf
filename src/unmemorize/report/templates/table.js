// Sorting and filtering for the ranked tables. Without it the page shows the same rows in rank order.
"use strict";
(() => {
  const tables = [...document.querySelectorAll("table.sortable")];
  const value = (row, column) => row.cells[column].dataset.value;

  const compare = (column, kind, sign) => (a, b) => {
    const [x, y] = [value(a, column), value(b, column)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (kind === "number" ? x - y : x.localeCompare(y)) || value(a, 0) - value(b, 0);
  };

  const sort = (table, header) => {
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = table.tBodies[0];
    const order = compare(header.cellIndex, header.dataset.sort, ascending ? 1 : -1);
    body.append(...[...body.rows].sort(order));
  };

  for (const table of tables) {
    for (const header of table.tHead.rows[0].cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      button.addEventListener("click", () => sort(table, header));
      header.append(button);
    }
    table.tHead.rows[0].cells[0].setAttribute("aria-sort", "ascending");
  }

  const controls = document.getElementById("controls");
  const [find, show, kind] = ["find", "show", "kind"].map((id) => document.getElementById(id));
  const rest = document.getElementById("rest");
  const rows = tables.flatMap((table) => [...table.tBodies[0].rows]);
  const text = new Map(rows.map((row) => [row, row.cells[1].textContent.toLowerCase()]));

  const matches = (row) => {
    const verdict = row.dataset.verdict;
    const copied = verdict === "verbatim" || verdict === "template";
    return (
      text.get(row).includes(find.value.trim().toLowerCase()) &&
      (!show.value || (show.value === "copied" ? copied : verdict === show.value)) &&
      (!kind || !kind.value || row.dataset.kind === kind.value)
    );
  };

  const filter = () => {
    const active = Boolean(find.value.trim() || show.value || (kind && kind.value));
    let shown = 0;
    for (const row of rows) {
      row.hidden = !matches(row);
      if (!row.hidden) shown += 1;
    }
    if (rest && active) rest.open = rest.querySelector("tbody tr:not([hidden])") !== null;
    document.getElementById("count").textContent = active ? `${shown} of ${rows.length} prompts` : "";
  };

  controls.hidden = false;
  controls.addEventListener("input", filter);
  controls.addEventListener("submit", (event) => event.preventDefault());

  // Paper cannot be clicked: print what is folded away, then fold it again.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((details) => (details.open = true));
  });
  addEventListener("afterprint", () => folded.forEach((details) => (details.open = false)));
})();
