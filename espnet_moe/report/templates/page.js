"use strict";

// Sorting: the button in a column's heading sorts by that column, numbers as numbers, nothing last.
function sortBy(heading, descending) {
  const table = heading.closest("table");
  const column = heading.cellIndex;
  const body = table.tBodies[0];
  const key = (row) => row.cells[column].dataset.sort;
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    const numbers = x - y;
    const order = Number.isNaN(numbers) ? x.localeCompare(y) : numbers;
    return descending ? -order : order;
  };
  body.append(...Array.from(body.rows).sort(compare));
  for (const other of heading.parentElement.cells) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    sortBy(heading, heading.getAttribute("aria-sort") === "ascending");
  });
}

// An address may ask for a sorted table: #sort=<table>.<column from 0>.<ascending|descending>
function sortAsAddressed() {
  const asked = /^#sort=([\w-]+)\.(\d+)\.(ascending|descending)$/.exec(location.hash);
  const figure = asked && document.getElementById(`table-${asked[1]}`);
  const heading = figure && figure.querySelectorAll("thead th")[asked[2]];
  if (!heading) return;
  const fold = figure.closest("details");
  if (fold) fold.open = true;
  sortBy(heading, asked[3] === "descending");
  figure.scrollIntoView();
}
addEventListener("hashchange", sortAsAddressed);
sortAsAddressed();

// One player at a time.
document.addEventListener("play", (event) => {
  for (const player of document.querySelectorAll("audio")) {
    if (player !== event.target) player.pause();
  }
}, true);

// On paper everything is unfolded.
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = Array.from(document.querySelectorAll("details:not([open])"));
  for (const fold of unfolded) fold.open = true;
});
addEventListener("afterprint", () => {
  for (const fold of unfolded) fold.open = false;
});
