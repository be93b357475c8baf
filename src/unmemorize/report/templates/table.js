// The ranked table: sorting, filtering, pages. Without it the page shows the rows with pictures in rank order.
"use strict";
(() => {
  const PAGE = 50;
  const byId = (id) => document.getElementById(id);
  const table = byId("ranked");
  const body = table.tBodies[0];

  // A record per prompt. Rows with pictures are in the page; the others are filled in from the data when shown.
  const written = [...body.rows].map((row) => ({
    row,
    text: row.cells[1].textContent.toLowerCase(),
    values: [...row.cells].map((cell) => cell.dataset.value),
    verdict: row.dataset.verdict,
    kind: row.dataset.kind,
  }));
  const order = ["verbatim", "template", "none", "not compared", "not generated"];
  const compact = JSON.parse(byId("rows").textContent).map((data) => {
    const [rank, id, prompt, , kind, , score, , , p, verdict] = data;
    const severity = order.indexOf(verdict) < 0 ? 9 : order.indexOf(verdict);
    const values = [rank, prompt.slice(0, 80), score ?? "", p ?? "", severity];
    return { data, text: `${prompt} ${id}`.toLowerCase(), values, verdict, kind };
  });
  const records = [...written, ...compact].sort((a, b) => a.values[0] - b.values[0]);

  const number = (value) =>
    value === null ? "–" : value === 0 || (Math.abs(value) >= 0.001 && Math.abs(value) < 100) ? value.toFixed(3) : value.toPrecision(3);

  const fill = (record) => {
    const row = byId("compact").content.firstElementChild.cloneNode(true);
    const [rank, id, prompt, planted, kind, copies, score, spread, bar, p, verdict, shots] = record.data;
    const text = (selector, value) => (row.querySelector(selector).textContent = value);
    text(".rank", rank);
    text(".prompt > bdi", prompt);
    text(".group-name", [planted, kind].filter(Boolean).join(": "));
    text(".copies", copies === null ? "" : `${copies}× in training`);
    text(".id bdi", id);
    text(".score .value", score === null ? "not scored" : number(score));
    text(".spread", spread === null ? "" : ` ± ${number(spread)}`);
    row.querySelector(".bar i").style.width = `${100 * bar}%`;
    text(".p", p === null ? "–" : p < 0.001 ? "< 0.001" : String(Number(p.toPrecision(2))));
    const shown = shots.map(([seed, distance, found]) =>
      distance === null ? `seed ${seed}: ${found}` : `seed ${seed}: ${found === "none" ? "no copy" : found}, distance ${number(distance)}`
    );
    text(".pictures", shown.join("; ") || verdict);
    row.classList.toggle("copied", copied(record));
    record.row = row;
  };

  const copied = (record) => record.verdict === "verbatim" || record.verdict === "template";
  const [find, show, kind] = ["find", "show", "kind"].map(byId);
  let shown = records;
  let page = 0;

  const draw = (list = shown.slice(page * PAGE, (page + 1) * PAGE)) => {
    list.forEach((record) => record.row || fill(record));
    body.replaceChildren(...list.map((record) => record.row));
    const pages = Math.max(1, Math.ceil(shown.length / PAGE));
    byId("pages").hidden = pages === 1;
    byId("page").textContent = `page ${page + 1} of ${pages}`;
    byId("before").disabled = page === 0;
    byId("after").disabled = page === pages - 1;
  };

  const wanted = (record) =>
    record.text.includes(find.value.trim().toLowerCase()) &&
    (!show.value ||
      (show.value === "copied"
        ? copied(record)
        : show.value === "suspected"
          ? record.values[3] !== "" && record.values[3] <= 0.05
          : record.verdict === show.value)) &&
    (!kind || !kind.value || record.kind === kind.value);

  const filter = () => {
    shown = records.filter(wanted);
    page = 0;
    byId("count").textContent = shown.length < records.length ? `${shown.length} of ${records.length} prompts` : "";
    draw();
  };

  const sort = (header) => {
    const ascending = header.getAttribute("aria-sort") !== "ascending";
    table.querySelectorAll("th[aria-sort]").forEach((th) => th.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const [column, sign] = [header.cellIndex, ascending ? 1 : -1];
    const compare = new Intl.Collator().compare;
    records.sort((a, b) => {
      const [x, y] = [a.values[column], b.values[column]];
      if (x === "" || y === "") return (x === "") - (y === "") || a.values[0] - b.values[0];
      return sign * (header.dataset.sort === "number" ? x - y : compare(x, y)) || a.values[0] - b.values[0];
    });
    filter();
  };

  for (const header of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sort(header));
    header.append(button);
  }
  table.tHead.rows[0].cells[0].setAttribute("aria-sort", "ascending");

  const turn = (by) => () => {
    page += by;
    draw();
    table.scrollIntoView();
    const turned = byId(by > 0 ? "after" : "before");
    (turned.disabled ? byId(by > 0 ? "before" : "after") : turned).focus({ preventScroll: true });
  };
  byId("before").addEventListener("click", turn(-1));
  byId("after").addEventListener("click", turn(1));
  byId("scriptless")?.remove();
  byId("controls").hidden = false;
  byId("controls").addEventListener("input", filter);
  byId("controls").addEventListener("submit", (event) => event.preventDefault());

  // Paper cannot be clicked: print every row with pictures and what is folded away, then put all back.
  let folded = [];
  addEventListener("beforeprint", () => {
    draw(written);
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((details) => (details.open = true));
  });
  addEventListener("afterprint", () => {
    folded.forEach((details) => (details.open = false));
    draw();
  });
  draw();
})();
