// Tables that sort, and a board that filters. Without this script every page still shows all it has.
"use strict";

function textOf(cell) {
  if (!cell) return "";
  if (cell.dataset.v !== undefined) return cell.dataset.v;
  const shown = reading(cell);
  if (!shown && cell.querySelector(".k")) return "";
  return (shown || cell).textContent.trim();
}

// The value of a cell under the score that is shown.
function reading(cell) {
  return [...cell.querySelectorAll(".k")].find((each) => each.classList.contains(score()));
}

function score() {
  const suite = document.getElementById("suite");
  return suite ? suite.dataset.score : "";
}

// A leading number decides; "=1" is a shared rank.
function valueOf(text) {
  const found = /^[=+]?(-?[\d,]*\.?\d+)/.exec(text);
  return found ? Number(found[1].replaceAll(",", "")) : text.toLowerCase();
}

function compareValues(left, right) {
  if (typeof left === "number" && typeof right === "number") return left - right;
  if (typeof left !== typeof right) return typeof left === "number" ? -1 : 1;
  return left.localeCompare(right, "en", { numeric: true });
}

function sortTable(table, column, direction) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, index) => {
    if (index === column) header.setAttribute("aria-sort", direction);
    else header.removeAttribute("aria-sort");
  });
  const sign = direction === "descending" ? -1 : 1;
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row, index) => {
    const text = textOf(row.cells[column]);
    const blank = text === "";
    return { row, index, blank, value: valueOf(text) };
  });
  keyed.sort((left, right) => {
    if (left.blank || right.blank) return left.blank - right.blank || left.index - right.index;
    return sign * compareValues(left.value, right.value) || left.index - right.index;
  });
  body.append(...keyed.map((each) => each.row));
  showRanks(table, headers[column].dataset.task === undefined ? null : column);
}

// Ranks over all levels, or on the level in this column.
function showRanks(table, column) {
  const header = table.querySelector("th.rank");
  if (!header) return;
  const task = column === null ? "" : table.tHead.rows[0].cells[column].dataset.task;
  (header.querySelector("button") || header).textContent = task ? `Rank on ${task}` : "Rank";
  for (const row of table.tBodies[0].rows) {
    const [suite, onTask] = row.querySelector("td.rank").children;
    const shown = column === null ? null : reading(row.cells[column]);
    onTask.textContent = (shown && shown.dataset.rank) || "";
    suite.hidden = column !== null;
  }
}

function firstDirection(table, column) {
  const header = table.tHead.rows[0].cells[column].textContent.trim();
  if (header.includes("Rank") || header.includes("rank")) return "ascending";
  const texts = [...table.tBodies[0].rows].map((row) => textOf(row.cells[column]));
  return texts.some((text) => text !== "" && typeof valueOf(text) === "number") ? "descending" : "ascending";
}

function makeSortable(table) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    if ("nosort" in header.dataset) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const now = header.getAttribute("aria-sort");
      const other = now === "ascending" ? "descending" : "ascending";
      sortTable(table, column, now ? other : firstDirection(table, column));
      state.sort.set(table.id, `${column}:${header.getAttribute("aria-sort")}`);
      remember();
    });
  });
}

// The state of a board lives in the address, so that a link shows what its sender saw.
const state = { sort: new Map() };

function remember() {
  const controls = document.getElementById("controls");
  const words = new URLSearchParams();
  if (controls) {
    const chosen = controls.querySelector("input[name=score]:checked");
    if (chosen && chosen.value !== "last10") words.set("score", chosen.value);
    const contains = document.getElementById("contains").value;
    if (contains) words.set("contains", contains);
    for (const box of controls.querySelectorAll("input[data-facet]:not(:checked)")) {
      words.append("without", `${box.dataset.facet}:${box.value}`);
    }
  }
  for (const [table, how] of state.sort) words.append("sort", `${table}:${how}`);
  const text = words.toString();
  history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
}

function recall() {
  const hash = location.hash.slice(1);
  // An address without "=" is that of a section.
  if (!hash.includes("=")) return false;
  const words = new URLSearchParams(hash);
  const controls = document.getElementById("controls");
  if (controls) {
    const wanted = words.get("score") || "last10";
    for (const radio of controls.querySelectorAll("input[name=score]")) radio.checked = radio.value === wanted;
    document.getElementById("contains").value = words.get("contains") || "";
    const without = new Set(words.getAll("without"));
    for (const box of controls.querySelectorAll("input[data-facet]")) {
      box.checked = !without.has(`${box.dataset.facet}:${box.value}`);
    }
    apply();
  }
  state.sort.clear();
  for (const each of words.getAll("sort")) {
    const [id, column, direction] = each.split(":");
    const table = document.getElementById(id);
    if (!table || !table.matches("table[data-sortable]") || !table.tHead.rows[0].cells[column]) continue;
    if (!["ascending", "descending"].includes(direction)) continue;
    state.sort.set(id, `${column}:${direction}`);
    sortTable(table, Number(column), direction);
  }
  return true;
}

function apply() {
  const controls = document.getElementById("controls");
  const chosen = controls.querySelector("input[name=score]:checked");
  if (chosen) document.getElementById("suite").dataset.score = chosen.value;
  const contains = document.getElementById("contains").value.trim().toLowerCase();
  const without = [...controls.querySelectorAll("input[data-facet]:not(:checked)")];
  let shown = 0;
  let all = 0;
  for (const board of document.querySelectorAll(".board")) {
    let here = 0;
    for (const row of board.querySelectorAll("tr[data-name]")) {
      const uses = (box) => row.getAttribute(`data-${box.dataset.facet}`).split("\n").includes(box.value);
      row.hidden = !row.dataset.name.includes(contains) || without.some(uses);
      all += 1;
      here += row.hidden ? 0 : 1;
    }
    board.querySelector(".empty").hidden = here > 0;
    shown += here;
  }
  document.getElementById("count").textContent = `${shown} of ${all} rows shown.`;
}

function resort() {
  for (const [id, how] of state.sort) {
    const [column, direction] = how.split(":");
    sortTable(document.getElementById(id), Number(column), direction);
  }
}

document.querySelectorAll("table[data-sortable]").forEach(makeSortable);
const controls = document.getElementById("controls");
if (controls) {
  controls.hidden = false;
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("input", () => {
    apply();
    resort();
    remember();
  });
  document.getElementById("show-all").addEventListener("click", () => {
    controls.reset();
    apply();
    resort();
    remember();
  });
  apply();
}
recall();
window.addEventListener("hashchange", recall);
