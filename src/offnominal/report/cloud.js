(function () {
  "use strict";
  var by = function (id) { return document.getElementById(id); };
  var data = JSON.parse(by("data").textContent), canvas = by("cloud"), pen = canvas.getContext("2d");
  var form = by("tools"), fields = form.elements, told = form.querySelector("output");
  function bytes(text) {
    var raw = atob(text), found = new Uint8Array(raw.length);
    for (var i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
    return found;
  }
  var places = new Uint16Array(bytes(data.points).buffer), scores = new Uint16Array(bytes(data.scores).buffer);
  var palette = bytes(data.palette), many = scores.length, surfaces = {};
  Object.keys(data.surfaces).forEach(function (name) {
    var option = document.createElement("option");
    option.value = name; option.textContent = name;
    fields.surface.append(option);
    surfaces[name] = bytes(data.surfaces[name]);
  });
  fields.surface.parentNode.hidden = Object.keys(surfaces).length < 2;

  // -- points about their middle, in metres -------------------------------------------------------
  var x = new Float32Array(many), y = new Float32Array(many), z = new Float32Array(many), middle = [0, 0, 0];
  for (var i = 0; i < many; i++) for (var a = 0; a < 3; a++) middle[a] += places[3 * i + a] * data.step / many;
  var radius = 1e-9;
  for (i = 0; i < many; i++) {
    x[i] = places[3 * i] * data.step - middle[0];
    y[i] = places[3 * i + 1] * data.step - middle[1];
    z[i] = places[3 * i + 2] * data.step - middle[2];
    radius = Math.max(radius, Math.hypot(x[i], y[i], z[i]));
  }

  // -- colours: the surface, with the heat over it --------------------------------------------------
  var colours = new Uint32Array(many), view;
  function score(at) { return data.score[0] + data.score[1] * scores[at]; }
  function paint() {
    var surface = surfaces[fields.surface.value], step = surface.length / many; // grey has one byte
    var hot = fields.hot.checked, span = Math.max(data.heat[1] - data.heat[0], 1e-30);
    for (var i = 0; i < many; i++) {
      var level = Math.min(Math.max((score(i) - data.heat[0]) / span, 0), 1), share = hot ? 0.65 * Math.sqrt(level) : 0;
      var from = step * i, next = step === 3 ? 1 : 0, one = 3 * Math.round(255 * level), rest = 1 - share;
      var red = surface[from] * rest + palette[one] * share, green = surface[from + next] * rest + palette[one + 1] * share;
      var blue = surface[from + 2 * next] * rest + palette[one + 2] * share;
      colours[i] = 0xff000000 | blue << 16 | green << 8 | red;
    }
  }
  function home() { view = { turn: 0.45, tip: -0.55, zoom: 1, right: 0, down: 0 }; }

  // -- the picture: nearest points win, each as large as points lie apart ---------------------------
  var picture, ink, depth, which, waiting = false, ratio = 1;
  function fit() {
    ratio = Math.min(devicePixelRatio || 1, 1.5);
    canvas.width = Math.max(1, canvas.clientWidth * ratio); canvas.height = Math.max(1, canvas.clientHeight * ratio);
    picture = pen.createImageData(canvas.width, canvas.height);
    ink = new Uint32Array(picture.data.buffer);
    depth = new Float32Array(ink.length); which = new Int32Array(ink.length);
  }
  function draw() {
    waiting = false;
    var wide = canvas.width, high = canvas.height, began = performance.now();
    var scale = 0.5 * Math.min(wide, 1.3 * high) / radius * view.zoom, far = 4 * radius;
    var ct = Math.cos(view.turn), st = Math.sin(view.turn), cp = Math.cos(view.tip), sp = Math.sin(view.tip);
    var left = wide / 2 + view.right * ratio, top = high / 2 + view.down * ratio, size = 1.3 * data.apart * scale;
    ink.fill(0); depth.fill(Infinity); which.fill(-1);
    for (var i = 0; i < many; i++) {
      var u = x[i] * ct + z[i] * st, w = z[i] * ct - x[i] * st, v = y[i] * cp + w * sp, deep = w * cp - y[i] * sp;
      var near = far / (far + deep);
      if (near <= 0) continue;
      var side = Math.min(Math.max(Math.ceil(size * near), 1), 14), half = side >> 1;
      var from = Math.round(left + u * scale * near) - half, first = Math.round(top + v * scale * near) - half;
      if (from < 0 || first < 0 || from + side > wide || first + side > high) continue;
      for (var row = first; row < first + side; row++) for (var at = row * wide + from, end = at + side; at < end; at++) {
        if (deep < depth[at]) { depth[at] = deep; ink[at] = colours[i]; which[at] = i; }
      }
    }
    pen.putImageData(picture, 0, 0);
    ruler(scale);
    canvas.dataset.milliseconds = (performance.now() - began).toFixed(1);
  }
  function ruler(scale) {
    var length = Math.pow(10, Math.floor(Math.log10(0.25 * canvas.width / scale)));
    [5, 2].some(function (times) { if (times * length * scale < 0.25 * canvas.width) { length *= times; return true; } return false; });
    var style = getComputedStyle(document.documentElement), low = canvas.height - 14 * ratio;
    pen.strokeStyle = pen.fillStyle = style.getPropertyValue("--soft").trim();
    pen.lineWidth = 2 * ratio; pen.font = 12 * ratio + "px system-ui, sans-serif";
    pen.beginPath(); pen.moveTo(14 * ratio, low); pen.lineTo(14 * ratio + length * scale, low); pen.stroke();
    pen.fillText(+(1000 * length).toPrecision(1) + " mm", 14 * ratio, low - 6 * ratio);
  }
  function again() { if (!waiting) { waiting = true; requestAnimationFrame(draw); } }

  // -- turning ----------------------------------------------------------------------------------------
  var held = {}, apart = 0;
  function spread() {
    var all = Object.keys(held).map(function (key) { return held[key]; });
    return all.length === 2 ? Math.hypot(all[0][0] - all[1][0], all[0][1] - all[1][1]) : 0;
  }
  function zoom(by) { view.zoom = Math.min(Math.max(view.zoom * by, 0.3), 20); again(); }
  canvas.addEventListener("pointerdown", function (event) {
    held[event.pointerId] = [event.clientX, event.clientY];
    apart = spread();
    try { canvas.setPointerCapture(event.pointerId); } catch (error) { /* a pointer that is gone already */ }
  });
  canvas.addEventListener("pointermove", function (event) {
    var last = held[event.pointerId];
    if (!last) return tell(event);
    var right = event.clientX - last[0], down = event.clientY - last[1];
    held[event.pointerId] = [event.clientX, event.clientY];
    var now = spread();
    if (now && apart) { zoom(now / apart); apart = now; view.right += right / 2; view.down += down / 2; }
    else if (event.shiftKey || event.buttons === 2) { view.right += right; view.down += down; }
    else { view.turn -= 0.008 * right; view.tip -= 0.008 * down; }
    again();
  });
  ["pointerup", "pointercancel"].forEach(function (name) {
    canvas.addEventListener(name, function (event) { delete held[event.pointerId]; apart = 0; });
  });
  canvas.addEventListener("contextmenu", function (event) { event.preventDefault(); });
  canvas.addEventListener("wheel", function (event) { event.preventDefault(); zoom(Math.exp(-0.0015 * event.deltaY)); }, { passive: false });
  canvas.addEventListener("keydown", function (event) {
    var steps = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[event.key];
    if (steps) { view.turn += steps[0]; view.tip += steps[1]; }
    else if (event.key === "+" || event.key === "-") zoom(event.key === "+" ? 1.2 : 1 / 1.2);
    else if (event.key === "0") home();
    else return;
    event.preventDefault();
    again();
  });
  function tell(event) {
    var box = canvas.getBoundingClientRect(), across = Math.floor((event.clientX - box.left) * ratio), down = Math.floor((event.clientY - box.top) * ratio);
    var at = which[down * canvas.width + across];
    told.textContent = at === undefined || at < 0 ? "" : "score " + score(at).toPrecision(4) + " at " + [0, 1, 2].map(function (axis) {
      return "xyz"[axis] + " " + (1000 * (data.at[axis] + data.step * places[3 * at + axis])).toFixed(1);
    }).join(", ") + " mm";
  }
  form.addEventListener("input", function () { paint(); again(); });
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  form.addEventListener("reset", function () { setTimeout(function () { home(); paint(); again(); }); });
  addEventListener("resize", function () { fit(); again(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  home(); fit(); paint(); draw();
})();
