// Tables that a reader sorts by a click on a heading. Cells without a value stay last.
document.querySelectorAll("table.sortable").forEach(function (table) {
  var body = table.tBodies[0], heads = Array.from(table.tHead.rows[0].cells);
  var order = document.querySelector("select.order");
  function key(row, column, kind) {
    var cell = row.cells[column], text = "v" in cell.dataset ? cell.dataset.v : cell.textContent.trim();
    return kind === "number" ? (text === "" ? NaN : Number(text)) : text.toLowerCase();
  }
  function sort(column, down) {
    var kind = heads[column].dataset.sort, sign = down ? -1 : 1;
    var rows = Array.from(body.rows, function (row) { return [key(row, column, kind), row]; });
    rows.sort(function (a, b) {
      var lacks = [a, b].map(function (pair) { return pair[0] !== pair[0] || pair[0] === ""; });
      if (lacks[0] || lacks[1]) return lacks[0] - lacks[1];
      return sign * (kind === "number" ? a[0] - b[0] : a[0].localeCompare(b[0], undefined, { numeric: true }));
    });
    rows.forEach(function (pair) { body.append(pair[1]); });
    heads.forEach(function (head, i) { if (head.dataset.sort) head.setAttribute("aria-sort", i !== column ? "none" : down ? "descending" : "ascending"); });
  }
  heads.forEach(function (head, column) {
    if (!head.dataset.sort) return;
    var button = document.createElement("button");
    button.type = "button";
    button.append.apply(button, Array.from(head.childNodes));
    head.append(button);
    if (!head.hasAttribute("aria-sort")) head.setAttribute("aria-sort", "none");
    button.addEventListener("click", function () { sort(column, head.getAttribute("aria-sort") === "ascending"); });
    if (order) [["", false], [", from the largest", true]].slice(0, head.dataset.sort === "number" ? 2 : 1).forEach(function (way) {
      order.add(new Option(button.textContent + way[0], column + (way[1] ? "-" : "")));
      if (head.getAttribute("aria-sort") === "ascending") order.value = String(column);
    });
  });
  if (order) order.addEventListener("change", function () { sort(parseInt(order.value, 10), order.value.slice(-1) === "-"); });
});
