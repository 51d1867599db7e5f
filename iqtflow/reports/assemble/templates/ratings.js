// The table of scans: find, select by keys, rate. Ratings that are not in ratings.tsv yet are kept in the browser.
(function () {
  var table = document.querySelector(".scans table");
  if (!table) return;
  var bar = document.querySelector(".finder"), rows = Array.from(table.tBodies[0].rows), current = null;
  var KEYS = { p: "pass", d: "doubt", f: "fail" }, place = "iqtflow ratings " + location.href.replace(/[^\/]*([?#].*)?$/, "");
  var kept = {}, canKeep = true;
  try { kept = JSON.parse(localStorage.getItem(place)) || {}; } catch (fault) { canKeep = false; }
  function keep() {
    try { localStorage.setItem(place, JSON.stringify(kept)); } catch (fault) { canKeep = false; }
    tell();
  }
  function stored(row) { return [row.dataset.storedRating, row.dataset.storedNote]; }
  function tell() {
    var rated = rows.filter(function (row) { return row.dataset.rating; }).length;
    var rateable = rows.filter(function (row) { return row.dataset.mark; }).length;
    var own = Object.keys(kept).length;
    bar.querySelector(".rated").textContent = rated + " of " + rateable + " rated." + (own ? " " + own + (own === 1 ? " change is" : " changes are") + " only in this " + (canKeep ? "browser." : "window: save before you close it.") : "");
  }
  function show(row) {
    row.dataset.rating = row.dataset.rating || "";
    row.querySelectorAll(".rating button").forEach(function (b) { b.setAttribute("aria-pressed", String(b.value === row.dataset.rating)); });
    var note = row.querySelector(".rating input");
    if (note !== document.activeElement) note.value = row.dataset.note || "";
    row.querySelector(".rating").dataset.v = row.dataset.rating;
  }
  function rate(row, rating, note) {
    if (!row || !row.dataset.mark) return;
    row.dataset.rating = rating;
    row.dataset.note = note;
    var before = stored(row);
    if (before[0] === rating && before[1] === note) delete kept[row.dataset.scan];
    else kept[row.dataset.scan] = [rating, note, row.dataset.mark];
    show(row);
    keep();
  }
  function toggle(row, rating) { rate(row, row.dataset.rating === rating ? "" : rating, row.dataset.note); }
  function select(row, focus) {
    if (current) { current.classList.remove("current"); current.tabIndex = -1; }
    current = row;
    row.classList.add("current");
    row.tabIndex = 0;
    // To come back from its page to this row. Some browsers refuse it for files.
    try { history.replaceState(null, "", "#" + encodeURIComponent(row.dataset.scan)); } catch (fault) { /* stay */ }
    if (focus) { row.focus({ preventScroll: true }); row.scrollIntoView({ block: "nearest" }); }
  }
  rows.forEach(function (row) {
    row.tabIndex = -1;
    row.dataset.note = row.dataset.note || "";
    row.dataset.storedRating = row.dataset.rating || "";
    row.dataset.storedNote = row.dataset.note;
    row.addEventListener("focusin", function () { if (current !== row) select(row, false); });
    var cell = row.querySelector(".rating");
    if (!row.dataset.mark) { cell.textContent = ""; return; }
    var own = kept[row.dataset.scan];
    if (own && own[2] === row.dataset.mark) {
      if (own[0] === row.dataset.storedRating && own[1] === row.dataset.storedNote) delete kept[row.dataset.scan];
      else { row.dataset.rating = own[0]; row.dataset.note = own[1]; }
    }
    var group = document.createElement("span"), note = document.createElement("input");
    group.setAttribute("role", "group");
    group.setAttribute("aria-label", "Rating of " + row.dataset.scan);
    Object.keys(KEYS).forEach(function (key) {
      var button = document.createElement("button");
      button.type = "button";
      button.value = button.textContent = KEYS[key];
      button.addEventListener("click", function () { toggle(row, KEYS[key]); });
      group.append(button, " ");
    });
    note.placeholder = "note";
    note.setAttribute("aria-label", "Note on " + row.dataset.scan);
    note.addEventListener("input", function () { rate(row, row.dataset.rating, note.value.replace(/\s+/g, " ").trim()); });
    cell.replaceChildren(group, note);
    show(row);
  });
  rows[0].tabIndex = 0;
  var came = rows.filter(function (row) { return "#" + encodeURIComponent(row.dataset.scan) === location.hash; })[0];
  if (came) select(came, true);

  var find = bar.querySelector(".find"), narrow = Array.from(bar.querySelectorAll(".narrow"));
  function text(row) { return (row.dataset.scan + " " + row.querySelector(".reason").textContent + " " + row.dataset.note).toLowerCase(); }
  function filter() {
    var words = find.value.toLowerCase().split(/\s+/), count = 0;
    rows.forEach(function (row) {
      var fits = words.every(function (word) { return text(row).indexOf(word) >= 0; }) && narrow.every(function (choice) {
        return !choice.value || (row.dataset[choice.dataset.of] || (row.dataset.mark ? "none" : "")) === choice.value;
      });
      row.hidden = !fits;
      count += fits ? 1 : 0;
    });
    bar.querySelector(".shown").textContent = count < rows.length ? count + " of " + rows.length + " shown" : "";
  }
  find.addEventListener("input", filter);
  narrow.forEach(function (choice) { choice.addEventListener("change", filter); });

  function step(by) {
    var seen = Array.from(table.tBodies[0].rows).filter(function (row) { return !row.hidden; });
    var next = seen[current && !current.hidden ? seen.indexOf(current) + by : 0];
    if (next) select(next, true);
  }
  document.addEventListener("keydown", function (event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    var typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName), key = event.key;
    if (typing) {
      if (key === "Escape" || (key === "Enter" && event.target.closest(".rating"))) { if (current) current.focus(); else event.target.blur(); event.preventDefault(); }
      return;
    }
    if (key.indexOf("Arrow") === 0 && !event.target.closest(".scans")) return; // they scroll the page
    if (key === "j" || key === "ArrowDown") step(1);
    else if (key === "k" || key === "ArrowUp") step(-1);
    else if (key === "/") { find.focus(); find.select(); }
    else if (!current) return;
    else if (KEYS[key]) toggle(current, KEYS[key]);
    else if (key === "n" && current.dataset.mark) current.querySelector(".rating input").focus();
    else if (key === "Enter" && event.target === current && current.querySelector("th a")) current.querySelector("th a").click();
    else return;
    event.preventDefault();
  });

  bar.querySelector(".export").addEventListener("click", function () {
    var lines = {};
    JSON.parse(table.dataset.others).forEach(function (other) { lines[other[0]] = other; });
    Object.keys(kept).forEach(function (scan) { lines[scan] = [scan].concat(kept[scan]); });
    rows.forEach(function (row) {
      if (row.dataset.rating || row.dataset.note) lines[row.dataset.scan] = [row.dataset.scan, row.dataset.rating, row.dataset.note, row.dataset.mark];
    });
    var table_ = [["scan", "rating", "note", "result"]].concat(Object.keys(lines).sort().map(function (scan) { return lines[scan]; }));
    var content = table_.filter(function (line) { return line[1] || line[2]; }).map(function (line) {
      return line.map(function (cell) { return cell === "" ? "n/a" : /["\t]/.test(cell) ? '"' + cell.replace(/"/g, '""') + '"' : cell; }).join("\t");
    }).join("\n") + "\n";
    var link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type: "text/tab-separated-values" }));
    link.download = "ratings.tsv";
    link.click();
    setTimeout(function () { URL.revokeObjectURL(link.href); }, 1000);
  });
  bar.hidden = false;
  tell();
})();
