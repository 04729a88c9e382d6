"use strict";
(() => {
  const form = document.getElementById("filters");
  const matrix = document.getElementById("matrix");
  const rows = [...matrix.querySelectorAll(".r")];
  const words = new Map();

  // What can be searched: all that a row and its details say, but for evidence.
  function said(row) {
    if (!words.has(row)) {
      const copy = row.nextElementSibling.cloneNode(true);
      copy.querySelectorAll("pre").forEach((pre) => pre.remove());
      words.set(row, (row.textContent + " " + copy.textContent).toLowerCase());
    }
    return words.get(row);
  }

  function ticked(name) {
    return [...form.querySelectorAll(`[name=${name}]:checked`)].map((box) => box.value);
  }

  function filter() {
    const text = form.elements.q.value.trim().toLowerCase();
    const level = form.elements.l.value;
    const section = form.elements.s.value;
    const verdicts = ticked("v");
    const columns = ticked("c").map(Number);
    let shown = 0;
    for (const row of rows) {
      const at = row.parentElement.dataset.s;
      const fits = (!level || row.dataset.l === level)
        && (!section || at === section || at.startsWith(section + "."))
        && (!row.dataset.v || columns.some((column) => verdicts.includes(row.dataset.v[column])))
        && (!text || said(row).includes(text));
      row.hidden = !fits;
      shown += fits;
    }
    for (const body of matrix.tBodies) {
      body.hidden = !body.querySelector(".r:not([hidden])");
    }
    matrix.className = [...rows[0] ? rows[0].dataset.v : ""]
      .map((_, column) => columns.includes(column) ? "" : "c" + column).join(" ");
    form.querySelector("output").value = shown + " of " + rows.length + " statements";
  }

  function open(row, whether) {
    row.querySelector("input").checked = whether;
  }

  // A link to a statement, or to a test, shows it.
  function follow() {
    const found = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!found) return;
    const row = found.closest(".r");
    if (row) open(row, true);
    for (let part = found.closest("details"); part; part = part.parentElement.closest("details")) {
      part.open = true;
    }
    found.scrollIntoView();
  }

  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const event of ["input", "change"]) form.addEventListener(event, filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.elements.open.addEventListener("click", () => {
    rows.filter((row) => !row.hidden).forEach((row) => open(row, true));
  });
  matrix.addEventListener("click", (event) => {
    const cell = event.target.closest(".r td");
    if (cell) {
      const row = cell.parentElement;
      open(row, !row.querySelector("input").checked);
    }
  });
  addEventListener("hashchange", follow);
  filter();
  follow();
})();
