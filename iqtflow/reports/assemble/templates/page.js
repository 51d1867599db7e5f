"use strict";
document.documentElement.classList.add("js");
// Comparisons of sheets: which is on the left, side by side or slider or blink, which slice, all slices.
document.querySelectorAll(".comparisons").forEach(function (group) {
  var modes = group.querySelectorAll("[data-mode]"), lefts = group.querySelectorAll("[data-left]");
  function press(buttons, chosen) { buttons.forEach(function (b) { b.setAttribute("aria-pressed", String(b === chosen)); }); }
  function compareBy(button) {
    group.classList.remove("beside", "slider", "blink");
    group.classList.add(button.dataset.mode);
    press(modes, button);
  }
  modes.forEach(function (b) { b.addEventListener("click", function () {
    if (b.dataset.mode === "slider") group.querySelectorAll(".all").forEach(function (box) { if (box.checked) box.click(); });
    compareBy(b);
  }); });
  lefts.forEach(function (b) { b.addEventListener("click", function () {
    press(lefts, b);
    group.querySelectorAll(".under").forEach(function (layer) { layer.hidden = layer.dataset.layer !== b.dataset.left; });
  }); });
  group.querySelectorAll(".compare").forEach(function (figure) {
    var stage = figure.querySelector(".stage"), wipe = figure.querySelector(".wipe"), slice = figure.querySelector(".slice"), all = figure.querySelector(".all");
    var place = figure.querySelector(".place"), places = JSON.parse(figure.dataset.places), side = Number(figure.dataset.side);
    function show(index) {
      stage.style.setProperty("--col", index % side);
      stage.style.setProperty("--row", Math.floor(index / side));
      place.textContent = places[index];
      slice.setAttribute("aria-valuetext", places[index]);
    }
    wipe.addEventListener("input", function () { stage.style.setProperty("--wipe", wipe.value + "%"); });
    slice.addEventListener("input", function () { if (all && all.checked) all.click(); show(Number(slice.value)); });
    if (all) all.addEventListener("change", function () {
      figure.classList.toggle("all-slices", all.checked);
      // The line would have different slices on its two sides.
      if (all.checked && group.classList.contains("slider")) compareBy(modes[0]);
    });
    show(Number(slice.value));
  });
  compareBy(modes[window.innerWidth < 600 ? 1 : 0]);
});
window.addEventListener("load", function () {
  var lost = Array.prototype.filter.call(document.images, function (image) { return image.complete && image.naturalWidth === 0; });
  document.documentElement.dataset.lostPictures = lost.length;
  if (lost.length) {
    document.getElementById("lost").hidden = false;
    document.getElementById("lost-count").textContent = lost.length + " of " + document.images.length;
  }
});
window.addEventListener("beforeprint", function () { document.querySelectorAll("details.print").forEach(function (d) { d.open = true; }); });
