(function () {
  "use strict";
  var by = function (id) { return document.getElementById(id); };
  var make = function (tag, kind, text) {
    var made = document.createElement(tag);
    if (kind) made.className = kind;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  var data = JSON.parse(by("data").textContent), limit = data.limit;
  var parts = data.parts.map(function (row, number) {
    return { number: number, name: row[0], folder: row[1], file: row[2], thumb: row[3], overlay: row[4], mask: row[5],
      score: row[6], decision: row[7], p: row[8], time: row[9], size: row[10], regions: row[11], worst: row[12], stamp: row[13], raw: row[14], kind: row[15], cloud: row[16], missing: row[17] };
  });
  var kinds = { "1": ["rejected", "✗ Rejected"], "0": ["passed", "✓ ok"], "-1": ["undecided", "No threshold"] };

  // A score with few digits, but enough to see on which side of the threshold it lies.
  function told(score) {
    for (var many = 4; many < 12; many++) {
      var text = score.toPrecision(many);
      if (limit === null || +text > +limit.toPrecision(many) === score > limit) return text.indexOf("e") < 0 ? text : String(+text);
    }
    return String(score);
  }

  // -- opinions: kept by the browser until they are saved, for as long as the file is the same ----
  parts.forEach(function (part) {
    part.path = data.folders[part.folder].replace(/[\\/]$/, "") + data.separator + part.name;
    part.key = (part.raw || part.path) + "\n" + part.stamp;
  });
  var store = "offnominal opinions " + location.pathname, opinions = {};
  try { opinions = JSON.parse(localStorage.getItem(store)) || {}; } catch (error) { /* a page without a store */ }
  function noted() { return parts.filter(function (part) { return opinions[part.key]; }); }
  function keep() {
    try { localStorage.setItem(store, JSON.stringify(opinions)); } catch (error) { /* they last as long as the page */ }
    var many = noted().length;
    by("noted").hidden = !many;
    by("noted").firstElementChild.textContent = many + (many === 1 ? " opinion noted." : " opinions noted.");
  }
  function note(part, opinion) {
    if (opinions[part.key] === opinion) delete opinions[part.key];
    else opinions[part.key] = opinion;
    keep();
  }
  by("save").addEventListener("click", function () {
    var told = noted().map(function (part) {
      var row = { opinion: opinions[part.key], decision: { "1": "reject", "0": "accept", "-1": null }[part.decision], score: part.score };
      if (part.raw) row.image_bytes = part.raw;
      else row.image = part.path;
      return row;
    });
    var text = JSON.stringify({ format: "offnominal opinions 1", inspected: parts.length, opinions: told }, null, 1) + "\n";
    var link = make("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = "opinions.json";
    link.click();
    setTimeout(function () { URL.revokeObjectURL(link.href); }, 1000);
  });
  by("drop").addEventListener("click", function () {
    if (confirm("Forget all opinions that were noted on this page?")) { noted().forEach(function (part) { delete opinions[part.key]; }); keep(); show(); }
  });

  // -- the list, a page at a time --------------------------------------------------------------
  var form = by("pick"), fields = form.elements, shown = [], page = 0;
  data.shown.forEach(function (name, number) {
    var option = make("option", "", name === "." ? "(top)" : name);
    option.value = number;
    fields.folder.append(option);
  });
  fields.folder.parentNode.hidden = data.folders.length < 2;
  data.classes.forEach(function (name) { fields.kind.append(make("option", "", name)); });
  fields.kind.parentNode.hidden = !data.classes.length;
  if (limit === null) {
    fields.sort.querySelector("[value=near]").remove();
  }
  var away = function (part) { return Math.abs(part.score - limit); };
  var orders = {
    high: function (a, b) { return b.decision - a.decision || b.score - a.score; },
    low: function (a, b) { return a.score - b.score; },
    near: function (a, b) { return away(a) - away(b); },
    order: function (a, b) { return data.timed ? a.time - b.time : a.number - b.number; },
    name: function (a, b) { return a.folder - b.folder || (a.name < b.name ? -1 : 1); }
  };
  function fits(part) {
    var wanted = fields.decision.value, opinion = opinions[part.key];
    if (wanted === "noted" && !opinion) return false;
    if (wanted === "against" && !(opinion && part.decision >= 0 && (opinion === "reject") !== (part.decision === 1))) return false;
    if (/^-?\d$/.test(wanted) && part.decision !== +wanted) return false;
    if (fields.kind.value && part.kind !== fields.kind.value) return false;
    if (fields.folder.value && part.folder !== +fields.folder.value) return false;
    return path(part).toLowerCase().indexOf(fields.name.value.toLowerCase()) >= 0;
  }
  function path(part) {
    var folder = data.shown[part.folder];
    return data.folders.length < 2 || folder === "." ? part.name : folder + data.separator + part.name;
  }
  function badges(part, into) {
    into.append(make("b", "badge " + kinds[part.decision][0], kinds[part.decision][1] + (part.kind ? ", " + part.kind : "")));
    if (opinions[part.key]) into.append(make("b", "badge opinion", opinions[part.key] === "accept" ? "noted: good" : "noted: reject"));
  }
  function card(part, at) {
    var item = make("li", "card " + kinds[part.decision][0]), opener = make("button", "open"), values = make("p", "values");
    opener.type = "button";
    opener.setAttribute("aria-label", "Enlarge " + part.name);
    if (part.thumb) {
      var image = make("img", "thumb");
      image.loading = "lazy"; image.decoding = "async"; image.alt = part.name + ", beside its heat"; image.src = part.thumb;
      opener.append(image);
    } else opener.append(make("span", "thumb"));
    opener.addEventListener("click", function () { enlarge(at); });
    badges(part, values);
    values.append(make("span", "", " score " + told(part.score)), make("br"), make("span", "file", path(part)));
    item.append(opener, values);
    return item;
  }
  function show() {
    shown = parts.filter(fits).sort(orders[fields.sort.value]);
    var size = +fields.size.value, pages = Math.max(1, Math.ceil(shown.length / size));
    page = Math.min(Math.max(page, 0), pages - 1);
    var from = page * size, list = by("parts");
    list.replaceChildren.apply(list, shown.slice(from, from + size).map(function (part, at) { return card(part, from + at); }));
    by("empty").hidden = shown.length > 0;
    form.querySelector("output").textContent = shown.length.toLocaleString("en") + " of " + parts.length.toLocaleString("en") + " images";
    by("pages").hidden = pages < 2;
    by("pages").querySelector("span").textContent = "Page " + (page + 1) + " of " + pages;
    by("pages").firstElementChild.disabled = page === 0;
    by("pages").lastElementChild.disabled = page === pages - 1;
  }
  form.hidden = false;
  form.addEventListener("input", function () { page = 0; show(); });
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  form.addEventListener("reset", function () { setTimeout(function () { page = 0; show(); }); });
  by("pages").addEventListener("click", function (event) {
    if (event.target.dataset.step) { page += +event.target.dataset.step; show(); form.scrollIntoView(); }
  });

  // -- one image, large beside its heat ----------------------------------------------------------
  var dialog = by("large"), current = 0, blinking = false;
  var crops = Array.from(dialog.querySelectorAll(".crop"));
  function cut(crop, source, whole, box, height) {
    var image = crop.firstElementChild;
    crop.style.aspectRatio = box[2] + " / " + box[3];
    // On a phone, pictures that are wider than high lie one above the other.
    var stacked = innerWidth <= 640 && box[2] > box[3];
    crop.closest(".pair").style.flexDirection = stacked ? "column" : "";
    crop.style.width = "min(" + (stacked ? 94 : 46) + "vw, " + (height * box[2] / box[3]) + "vh, " + Math.round(box[2] * 2.5) + "px)";
    image.style.width = 100 * whole[0] / box[2] + "%";
    image.style.left = -100 * box[0] / box[2] + "%";
    image.style.top = -100 * box[1] / box[3] + "%";
    if (image.getAttribute("src") !== source) image.src = source;
  }
  function draw() {
    var part = shown[current], plan = data.layouts[part.size], size = part.size.split("x").map(Number);
    // A thumbnail is both halves in one; an overlay has them where its layout says.
    var whole = part.overlay ? plan.slice(0, 2) : [2 * size[1], size[0]];
    var image = part.overlay ? plan.slice(2, 6) : [0, 0, size[1], size[0]];
    var heat = part.overlay ? plan.slice(6, 10) : [size[1], 0, size[1], size[0]];
    var source = part.overlay || part.thumb;
    dialog.querySelector(".pair").hidden = !source;
    if (source) {
      cut(crops[0], source, whole, image, 74);
      cut(crops[1], source, whole, blinking ? image : heat, 74);
    }
    dialog.querySelector(".pair figure:last-child figcaption").textContent = blinking ? "Heat taken away" : "Heat";
    var values = dialog.querySelector(".values");
    values.replaceChildren();
    badges(part, values);
    values.append(make("span", "", " score " + told(part.score) + (limit === null ? "" : ", threshold " + told(limit)) + (part.p === null ? "" : ", p " + part.p.toPrecision(2))), make("br"), make("span", "file", path(part)));
    var links = dialog.querySelector(".links");
    links.replaceChildren();
    [["original file", part.file], ["picture", part.overlay], ["mask", part.mask], ["turn it", part.cloud && part.cloud + ".html"], ["points", part.cloud && part.cloud + ".ply"]].forEach(function (link) {
      if (!link[1]) return;
      var anchor = make("a", "", link[0]);
      anchor.href = link[1]; anchor.target = "_blank"; anchor.rel = "noopener";
      links.append(anchor, " · ");
    });
    links.append(part.regions ? part.regions + (part.regions === 1 ? " area" : " areas") + " outlined" + (part.worst ? ", the worst at x " + part.worst[0] + ", y " + part.worst[1] : "") : "nothing outlined");
    if (part.missing) links.append(" · " + part.missing.toLocaleString("en") + " pixels not measured");
    links.append(" · " + (current + 1) + " of " + shown.length);
    if (!part.overlay && part.thumb) links.append(" · enlarged from the thumbnail: --save overlay writes large pictures");
    dialog.querySelector("[data-do=accept]").setAttribute("aria-pressed", opinions[part.key] === "accept");
    dialog.querySelector("[data-do=reject]").setAttribute("aria-pressed", opinions[part.key] === "reject");
    dialog.querySelector("[data-do=blink]").setAttribute("aria-pressed", blinking);
  }
  function enlarge(at) {
    current = (at + shown.length) % shown.length;
    blinking = false;
    draw();
    if (!dialog.open) dialog.showModal();
  }
  function act(what) {
    if (what === "close") dialog.close();
    else if (what === "blink") { blinking = !blinking; draw(); }
    else if (what === "accept" || what === "reject") {
      note(shown[current], what);
      // On to the next one, unless an opinion was taken back.
      if (opinions[shown[current].key] && current + 1 < shown.length) enlarge(current + 1);
      else draw();
    } else enlarge(current + +what);
  }
  dialog.addEventListener("click", function (event) {
    if (event.target.dataset.do) {
      act(event.target.dataset.do);
      if (event.detail) dialog.querySelector(".pair").focus(); // after a mouse: the keys are the page's again
    }
    else if (event.target.closest(".heat")) act("blink");
  });
  dialog.addEventListener("keydown", function (event) {
    var what = { ArrowLeft: "-1", ArrowRight: "1", " ": "blink", a: "accept", A: "accept", r: "reject", R: "reject" }[event.key];
    if (!what || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " " && event.target.closest("button")) return; // it presses the button
    event.preventDefault();
    act(what);
  });
  dialog.addEventListener("close", function () {
    var at = current, last = shown[current];
    show();
    page = Math.floor(Math.max(shown.indexOf(last), 0) / +fields.size.value);
    show();
    var opener = by("parts").querySelectorAll(".open")[Math.max(shown.indexOf(last), 0) % +fields.size.value];
    if (opener) opener.focus();
    current = at;
  });

  // -- charts ------------------------------------------------------------------------------------
  var low = Infinity, high = -Infinity;
  parts.map(function (part) { return part.score; }).concat(limit === null ? [] : [limit]).forEach(function (score) {
    low = Math.min(low, score); high = Math.max(high, score);
  });
  if (!(high > low)) high = low + (Math.abs(low) || 1);
  var inOrder = parts.slice().sort(orders.order);
  var charts = [
    { canvas: by("strip"), place: function (part, at) { return [(part.score - low) / (high - low), (at * 0.618034) % 1]; } },
    { canvas: by("trend"), place: function (part, at) { return [parts.length > 1 ? at / (parts.length - 1) : 0.5, 1 - (part.score - low) / (high - low)]; } }
  ];
  var edge = { left: 12, right: 12, top: 20, bottom: 20 };
  function plot(chart, flat) {
    var canvas = chart.canvas, width = canvas.clientWidth, height = canvas.clientHeight, ratio = devicePixelRatio || 1;
    if (!width) return;
    canvas.width = width * ratio; canvas.height = height * ratio;
    var pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    var colour = function (name) { return style.getPropertyValue("--" + name).trim(); };
    pen.scale(ratio, ratio);
    pen.font = "12px system-ui, sans-serif";
    var wide = width - edge.left - edge.right, tall = height - edge.top - edge.bottom;
    pen.strokeStyle = colour("line"); pen.beginPath(); pen.moveTo(edge.left, height - edge.bottom); pen.lineTo(width - edge.right, height - edge.bottom); pen.stroke();
    var radius = parts.length > 2000 ? 1.5 : parts.length > 300 ? 2.5 : 3.5;
    pen.globalAlpha = parts.length > 2000 ? 0.45 : 0.75;
    chart.dots = inOrder.map(function (part, at) {
      var where = chart.place(part, at), x = edge.left + wide * where[0], y = edge.top + 4 + (tall - 8) * where[1];
      pen.fillStyle = colour({ "1": "miss", "0": "hit", "-1": "good" }[part.decision]);
      pen.beginPath(); pen.arc(x, y, radius, 0, 7); pen.fill();
      return [x, y, part];
    });
    pen.globalAlpha = 1;
    pen.fillStyle = colour("soft");
    // A halo keeps words legible over dots.
    var write = function (text, x, y, align) {
      pen.textAlign = align; pen.lineWidth = 4; pen.lineJoin = "round"; pen.strokeStyle = colour("sheet");
      pen.strokeText(text, x, y); pen.fillText(text, x, y);
    };
    if (flat) { write(told(low), edge.left, height - 5, "left"); write(told(high), width - edge.right, height - 5, "right"); }
    else if (parts.length) {
      var ends = [inOrder[0], inOrder[parts.length - 1]].map(function (part, at) {
        return data.timed ? new Date(1000 * part.time).toLocaleString() : at ? "last" : "first";
      });
      write(ends[0], edge.left, height - 5, "left"); write(ends[1], width - edge.right, height - 5, "right");
      // Running median of what passed, so that a drift is seen among the dots and rejects are none.
      var calm = chart.dots.filter(function (dot) { return dot[2].decision !== 1; });
      var half = Math.max(5, Math.round(calm.length / 20)), step = Math.max(1, Math.floor(calm.length / 200));
      pen.strokeStyle = colour("ink"); pen.lineWidth = 1.5; pen.beginPath();
      for (var at = 0; at < calm.length; at += step) {
        var from = Math.max(0, Math.min(at - half, calm.length - 2 * half - 1));
        var near = calm.slice(from, from + 2 * half + 1).map(function (dot) { return dot[1]; }).sort(function (a, b) { return a - b; });
        pen[at ? "lineTo" : "moveTo"](calm[at][0], near[near.length >> 1]);
      }
      pen.stroke();
    }
    if (limit !== null) {
      var share = (limit - low) / (high - low);
      pen.strokeStyle = colour("limit"); pen.setLineDash([5, 4]); pen.lineWidth = 1.5; pen.beginPath();
      if (flat) { pen.moveTo(edge.left + wide * share, edge.top - 4); pen.lineTo(edge.left + wide * share, height - edge.bottom); }
      else { pen.moveTo(edge.left, edge.top + 4 + (tall - 8) * (1 - share)); pen.lineTo(width - edge.right, edge.top + 4 + (tall - 8) * (1 - share)); }
      pen.stroke(); pen.setLineDash([]);
      pen.fillStyle = colour("ink"); pen.font = "600 12px system-ui, sans-serif";
      if (flat) write("threshold " + told(limit), edge.left + wide * share, 11, share < 0.2 ? "left" : share > 0.8 ? "right" : "center");
      else write("threshold " + told(limit), width - edge.right, Math.max(11, edge.top + (tall - 8) * (1 - share)), "right");
    }
  }
  function plotAll() { charts.forEach(function (chart, at) { plot(chart, at === 0); }); }
  function nearest(chart, event) {
    var box = chart.canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top, best = null, least = 400;
    chart.dots.forEach(function (dot) {
      var distance = (dot[0] - x) * (dot[0] - x) + (dot[1] - y) * (dot[1] - y);
      if (distance < least) { least = distance; best = dot[2]; }
    });
    return best;
  }
  charts.forEach(function (chart) {
    chart.canvas.addEventListener("mousemove", function (event) {
      var part = nearest(chart, event);
      chart.canvas.title = part ? part.name + ", score " + told(part.score) : "";
    });
    chart.canvas.addEventListener("click", function (event) {
      var part = nearest(chart, event);
      if (!part) return;
      if (shown.indexOf(part) < 0) { form.reset(); shown = parts.slice().sort(orders.high); }
      enlarge(shown.indexOf(part));
    });
  });
  by("order").textContent = data.timed ? "Scores by the time of the file, with the running median of what passed" : "Scores in the order of the run, with the running median of what passed";
  addEventListener("resize", function () { plotAll(); if (dialog.open) draw(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", plotAll);
  addEventListener("beforeprint", plotAll);
  addEventListener("afterprint", plotAll);
  keep();
  show();
  plotAll();
})();
