// The handle on the histogram: what it says is computed here, from the scores in the page.
"use strict";
const setter = document.getElementById("setter");
if (setter) {
  const data = JSON.parse(setter.dataset.scores);
  const svg = setter.querySelector("svg.chart");
  const field = document.getElementById("value");
  const language = document.documentElement.lang;
  const on = (value) => (data.log ? Math.log(Math.max(value, 1e-300)) : value);
  const off = (value) => (data.log ? Math.exp(value) : value);
  const low = on(data.low), high = on(data.high);
  const place = (value) => data.start + ((Math.min(Math.max(on(value), low), high) - low) / (high - low)) * (data.stop - data.start);
  const valueAt = (x) => off(low + ((Math.min(Math.max(x, data.start), data.stop) - data.start) / (data.stop - data.start)) * (high - low));
  const sorted = {};
  for (const name of ["good", "bad", "unlabelled", "calibration"]) sorted[name] = Float64Array.from(data[name]).sort();
  function above(name, value) {
    let from = 0, to = sorted[name].length;
    while (from < to) {
      const middle = (from + to) >> 1;
      if (sorted[name][middle] > value) to = middle; else from = middle + 1;
    }
    return sorted[name].length - from;
  }
  const make = (name, given, parent) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in given) made.setAttribute(key, given[key]);
    return parent.appendChild(made);
  };
  make("line", { class: "old-limit", x1: place(data.threshold), x2: place(data.threshold), y1: 6, y2: 268 }, svg);
  svg.setAttribute("role", "group");
  const handle = make("g", { class: "handle", tabindex: 0, role: "slider", "aria-label": field.closest("label").firstChild.textContent.trim(), "aria-valuemin": data.low, "aria-valuemax": data.high }, svg);
  make("line", { class: "catch", y1: 0, y2: 270 }, handle);
  make("line", { y1: 0, y2: 270 }, handle);
  make("path", { d: "M-7 0h14v9l-7 8l-7 -8z" }, handle);
  const number = new Intl.NumberFormat(language, { maximumSignificantDigits: 3 });
  const hundredths = new Intl.NumberFormat(language, { maximumFractionDigits: 2 });
  const percent = (rate) => `${hundredths.format(100 * rate)} %`;
  let value = data.value;
  function set(next, typed) {
    value = next;
    handle.setAttribute("transform", `translate(${place(value)} 0)`);
    handle.setAttribute("aria-valuenow", value);
    handle.setAttribute("aria-valuetext", number.format(value));
    if (!typed) field.value = Number(value.toPrecision(6));
    const rejected = above("good", value), missed = data.bad.length - above("bad", value);
    document.getElementById("rejected").textContent = rejected + above("unlabelled", value);
    document.getElementById("missed").textContent = missed;
    const n = data.calibration.length;
    document.getElementById("promised").textContent = n ? percent((1 + above("calibration", value)) / (n + 1)) : "–";
    const cost = document.getElementById("cost");
    // As offnominal.costs has it: of few images none is no proof of never.
    const fine = data.good.length + n, wrong = rejected + above("calibration", value);
    if (cost) cost.textContent = number.format(1000 * (data.share * data.miss * (missed + 1) / (data.bad.length + 2) + (1 - data.share) * data.reject * (wrong + 1) / (fine + 2)));
  }
  const x = (event) => {
    const box = svg.getBoundingClientRect();
    return ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
  };
  let held = false;
  svg.addEventListener("pointerdown", (event) => { held = true; svg.setPointerCapture(event.pointerId); set(valueAt(x(event))); handle.focus({ preventScroll: true }); });
  svg.addEventListener("mousedown", (event) => event.preventDefault()); // the handle keeps the focus
  svg.addEventListener("pointermove", (event) => { if (held) set(valueAt(x(event))); });
  for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, () => { held = false; });
  handle.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -20, PageUp: 20 }[event.key];
    if (step) set(valueAt(place(value) + step * (event.shiftKey ? 10 : 1)));
    else if (event.key === "Home") set(data.low);
    else if (event.key === "End") set(data.high);
    else return;
    event.preventDefault();
  });
  field.addEventListener("input", () => { if (field.value !== "" && Number.isFinite(field.valueAsNumber)) set(field.valueAsNumber, true); });
  document.getElementById("reset").addEventListener("click", () => set(data.threshold));
  document.getElementById("take")?.addEventListener("click", (event) => { event.preventDefault(); set(Number(event.currentTarget.dataset.value)); handle.focus(); });
  set(value);
}
