// One part: zoom and pan, the map, and labels, all by keys as well.
"use strict";
const stage = document.getElementById("stage");
const picture = document.getElementById("picture");
let scale = 1, x = 0, y = 0;
const pointers = new Map();
function draw() {
  const wide = stage.clientWidth, high = stage.clientHeight;
  x = Math.min(Math.max(x, wide * (1 - scale)), 0);
  y = Math.min(Math.max(y, high * (1 - scale)), 0);
  picture.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
  picture.classList.toggle("large", scale > 3);
}
function zoom(factor, atX = stage.clientWidth / 2, atY = stage.clientHeight / 2) {
  const next = Math.min(Math.max(scale * factor, 1), 40);
  x = atX - (atX - x) * next / scale;
  y = atY - (atY - y) * next / scale;
  scale = next;
  draw();
}
function whole() { scale = 1; x = y = 0; draw(); }
function turnMap() {
  const button = document.getElementById("map");
  if (!button) return;
  const on = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", on);
  picture.src = on ? picture.dataset.heat : picture.dataset.view;
  sessionStorage.setItem("map", on ? "1" : "");
}
if (stage) {
  document.getElementById("in").addEventListener("click", () => zoom(1.5));
  document.getElementById("out").addEventListener("click", () => zoom(1 / 1.5));
  document.getElementById("fit").addEventListener("click", whole);
  document.getElementById("map")?.addEventListener("click", turnMap);
  if (sessionStorage.getItem("map")) turnMap();
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = stage.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  stage.addEventListener("dblclick", (event) => {
    const box = stage.getBoundingClientRect();
    if (scale > 1) whole(); else zoom(3, event.clientX - box.left, event.clientY - box.top);
  });
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, event);
  });
  stage.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const other = [...pointers.values()].find((one) => one.pointerId !== event.pointerId);
    if (other) {
      const box = stage.getBoundingClientRect();
      const now = Math.hypot(event.clientX - other.clientX, event.clientY - other.clientY);
      const then = Math.hypot(before.clientX - other.clientX, before.clientY - other.clientY);
      zoom(now / Math.max(then, 1), (event.clientX + other.clientX) / 2 - box.left, (event.clientY + other.clientY) / 2 - box.top);
    } else {
      x += event.clientX - before.clientX;
      y += event.clientY - before.clientY;
      draw();
    }
    pointers.set(event.pointerId, event);
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (event) => pointers.delete(event.pointerId));
  window.addEventListener("resize", draw);
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
  const key = event.key.toLowerCase();
  const moved = { arrowleft: [60, 0], arrowright: [-60, 0], arrowup: [0, 60], arrowdown: [0, -60] }[key];
  if (moved && stage && scale > 1 && document.activeElement === stage) {
    x += moved[0]; y += moved[1];
    draw();
    event.preventDefault();
  } else if (key === "arrowleft") document.querySelector("a[rel=prev]")?.click();
  else if (key === "arrowright") document.querySelector("a[rel=next]")?.click();
  else if (stage && (key === "+" || key === "=")) zoom(1.5);
  else if (stage && key === "-") zoom(1 / 1.5);
  else if (stage && key === "0") whole();
  else if (stage && key === "m") turnMap();
  else document.querySelector(`button[data-key="${CSS.escape(key)}"]:not(:disabled)`)?.click();
});
