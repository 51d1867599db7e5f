// The viewer: the volumes lie in scripts beside the page, and are read when a reader asks for them.
var iqtflowVolumes = {};
function iqtflowVolume(scan, key, text) { iqtflowVolumes[scan + " " + key] = text; }
(function () {
  var read = {};
  function load(file) {
    if (!read[file]) read[file] = new Promise(function (done, fail) {
      var script = document.createElement("script");
      script.src = file;
      script.onload = done;
      script.onerror = function () { delete read[file]; fail(new Error(decodeURIComponent(file) + " is not there. Copy the page together with its folders.")); };
      document.head.appendChild(script);
    });
    return read[file];
  }
  document.querySelectorAll(".viewer").forEach(function (box) {
    var layers = JSON.parse(box.dataset.layers), panel = box.querySelector(".panel"), open = box.querySelector(".open");
    var canvas = box.querySelector("canvas"), told = box.querySelector(".told"), place = box.querySelector(".mm");
    var images = {}, nv = null, base = "iqt", over = "", zoom = 1, turn = 0;
    function layer(key) { return layers.find(function (l) { return l.key === key; }); }
    async function image(key) {
      if (images[key]) return images[key];
      var l = layer(key);
      await load(l.file);
      var how = { base64: iqtflowVolumes[box.dataset.scan + " " + key], name: key + ".nii.gz", colormap: l.over ? (l.negative ? "warm" : "inferno") : "gray", opacity: l.over ? 0.7 : 1,
        cal_min: l.over ? 0.3 * l.high : l.low, cal_max: l.high };
      if (l.negative) { how.colormapNegative = "winter"; how.cal_minNeg = l.low; how.cal_maxNeg = 0.3 * l.low; }
      images[key] = await niivue.NVImage.loadFromBase64(how);
      delete iqtflowVolumes[box.dataset.scan + " " + key];
      return images[key];
    }
    async function start() {
      await load(box.dataset.program);
      nv = new niivue.Niivue({ logLevel: "error", loadingText: "", dragAndDropEnabled: false, backColor: [0, 0, 0, 1], crosshairColor: [1, 0.75, 0, 0.7], crosshairGap: 6,
        isRadiologicalConvention: box.dataset.convention === "radiological", sagittalNoseLeft: true, multiplanarShowRender: 0, viewModeHotKey: "", clipPlaneHotKey: "" });
      await nv.attachToCanvas(canvas);
      if (!nv.gl) throw new Error("WebGL2 is missing.");
      nv.onLocationChange = function (at) {
        place.textContent = Array.from(at.mm).slice(0, 3).map(function (v, i) { return (v < 0 ? "LPI"[i] : "RAS"[i]) + " " + Math.abs(v).toFixed(0); }).join(", ") + " mm";
      };
      nv.setSliceType(nv.sliceTypeMultiplanar);
    }
    async function show() {
      var mine = ++turn;
      told.textContent = "Loading …";
      try {
        if (!nv) await start();
        var wanted = [await image(base)];
        if (over) wanted.push(await image(over));
        if (mine !== turn) return;
        var at = nv.volumes.length ? nv.frac2mm(nv.scene.crosshairPos) : null;
        nv.volumes.slice().forEach(function (volume) { nv.removeVolume(volume); });
        nv.setInterpolation(Boolean(layer(base).blocks));
        wanted.forEach(function (volume) { nv.addVolume(volume); });
        if (at) move(at); else nv.drawScene();
        told.textContent = over ? layer(over).tag + ", " + layer(over).unit + "." : "";
        box.dataset.shown = over ? base + " " + over : base;
      } catch (fault) {
        told.textContent = "The viewer does not work here (" + fault.message + "). The pictures on this page show the same volumes.";
        box.dataset.shown = "fault";
      }
    }
    function move(mm) { nv.scene.crosshairPos = nv.mm2frac([mm[0], mm[1], mm[2]]); nv.createOnLocationChange(); nv.drawScene(); }
    function enlarge(factor) { zoom = Math.min(Math.max(zoom * factor, 1), 12); var at = nv.frac2mm(nv.scene.crosshairPos); nv.setPan2Dxyzmm(zoom === 1 ? [0, 0, 0, 1] : [-at[0], -at[1], -at[2], zoom]); }
    function choose(key) {
      var l = layer(key);
      if (key && !l) return;
      if (!l) over = ""; else if (l.over) over = over === key ? "" : key; else base = key;
      box.querySelectorAll("[data-key]").forEach(function (b) { b.setAttribute("aria-pressed", String(b.dataset.key === base || b.dataset.key === over)); });
      return show();
    }
    open.addEventListener("click", function () {
      panel.hidden = !panel.hidden;
      open.setAttribute("aria-expanded", String(!panel.hidden));
      if (!panel.hidden) { choose("").then(function () { canvas.focus(); }); }
    });
    box.querySelectorAll("[data-key]").forEach(function (b) { b.addEventListener("click", function () { choose(b.dataset.key); }); });
    box.querySelectorAll("[data-zoom]").forEach(function (b) { b.addEventListener("click", function () { if (nv) enlarge(Number(b.dataset.zoom)); }); });
    var steps = { ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, 0, 1], ArrowDown: [0, 0, -1], PageUp: [0, 1, 0], PageDown: [0, -1, 0] };
    canvas.addEventListener("keydown", function (event) {
      if (!nv || event.ctrlKey || event.altKey || event.metaKey) return;
      var step = steps[event.key], number = Number(event.key);
      if (step) { if (box.dataset.convention === "radiological") step = [-step[0], step[1], step[2]]; nv.moveCrosshairInVox(step[0], step[1], step[2]); }
      else if (number >= 1 && number <= layers.length) choose(layers[number - 1].key);
      else if (event.key === "+" || event.key === "=") enlarge(1.5);
      else if (event.key === "-") enlarge(1 / 1.5);
      else return;
      event.preventDefault();
      event.stopImmediatePropagation();
    });
    document.querySelectorAll('[data-show="' + box.dataset.scan + '"]').forEach(function (b) { b.addEventListener("click", async function () {
      if (panel.hidden) open.click();
      await show();
      if (nv && nv.volumes.length) move(b.dataset.mm.split(" ").map(Number));
      box.scrollIntoView({ block: "start" });
      canvas.focus();
    }); });
  });
})();
