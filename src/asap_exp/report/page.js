// Sorting, large figures and the folded contents. Without it the page can be read as it is.

const sorted = new Intl.Collator("en", { numeric: true });

function compare(left, right, down) {
  const [a, b] = [left, right].map((cell) => cell.dataset.value ?? cell.textContent.trim());
  const [x, y] = [Number(a), Number(b)];
  if (a === "" || b === "") return (a === "") - (b === ""); // what was not measured comes last
  const order = Number.isNaN(x) || Number.isNaN(y) ? sorted.compare(a, b) : x - y;
  return down ? -order : order;
}

function sort(table, column) {
  const heading = table.tHead.rows[0].cells[column];
  const before = heading.getAttribute("aria-sort");
  const down = before ? before === "ascending" : heading.dataset.first === "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => !row.matches(".group"));
    rows.sort((a, b) => compare(a.cells[column], b.cells[column], down));
    body.append(...rows);
  }
}

for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sort(table, column));
    heading.append(button);
  });
}

const dialog = document.querySelector("dialog");

function enlarge(image) {
  const large = dialog.querySelector("img");
  large.src = image.src;
  large.alt = image.alt;
  dialog.querySelector(".caption").textContent = image.alt;
  dialog.showModal();
}

for (const image of document.querySelectorAll("figure img")) {
  const button = document.createElement("button");
  button.type = "button";
  button.title = "Open large";
  image.replaceWith(button);
  button.append(image);
  button.addEventListener("click", () => enlarge(image));
}

dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close(); // beside the figure
});

const contents = document.querySelector("nav details");
const narrow = matchMedia("(max-width: 64rem)");
const fold = () => (contents.open = !narrow.matches);
fold();
narrow.addEventListener("change", fold);
contents.addEventListener("click", (event) => {
  if (event.target.matches("a") && narrow.matches) contents.open = false;
});
