"use strict";
document.documentElement.classList.add("js");
document.querySelectorAll(".compare").forEach(function (figure) {
  var stage = figure.querySelector(".stage"), wipe = figure.querySelector(".wipe"), slice = figure.querySelector(".slice");
  var place = figure.querySelector(".place"), places = JSON.parse(figure.dataset.places), side = Number(figure.dataset.side);
  var buttons = figure.querySelectorAll("button[data-wipe]"), sheet = figure.querySelector(".all");
  function cutAt(percent) {
    stage.style.setProperty("--wipe", percent + "%");
    wipe.value = percent;
    buttons.forEach(function (b) { b.setAttribute("aria-pressed", String(Number(b.dataset.wipe) === Number(percent))); });
  }
  function show(index) {
    stage.style.setProperty("--col", index % side);
    stage.style.setProperty("--row", Math.floor(index / side));
    place.textContent = places[index];
    slice.setAttribute("aria-valuetext", places[index]);
  }
  wipe.addEventListener("input", function () { cutAt(wipe.value); });
  buttons.forEach(function (b) { b.addEventListener("click", function () { cutAt(b.dataset.wipe); }); });
  slice.addEventListener("input", function () { if (sheet.checked) { sheet.checked = false; stage.classList.remove("sheet"); } show(Number(slice.value)); });
  sheet.addEventListener("change", function () { stage.classList.toggle("sheet", sheet.checked); });
  cutAt(50);
  show(Number(slice.value));
});
document.querySelectorAll(".filter").forEach(function (bar) {
  var cards = document.querySelectorAll(".card"), buttons = bar.querySelectorAll("button"), field = bar.querySelector("input");
  var mark = "", shown = bar.querySelector(".shown");
  function narrow() {
    var count = 0, wanted = field.value.trim().toLowerCase();
    cards.forEach(function (card) {
      var fits = (!mark || card.dataset.marks.split(" ").indexOf(mark) >= 0) && card.dataset.label.toLowerCase().indexOf(wanted) >= 0;
      card.hidden = !fits;
      count += fits ? 1 : 0;
    });
    shown.textContent = count < cards.length ? count + " of " + cards.length + " shown" : "";
  }
  buttons.forEach(function (b) { b.addEventListener("click", function () {
    mark = b.dataset.filter;
    buttons.forEach(function (other) { other.setAttribute("aria-pressed", String(other === b)); });
    narrow();
  }); });
  field.addEventListener("input", narrow);
  bar.hidden = cards.length < 2;
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
