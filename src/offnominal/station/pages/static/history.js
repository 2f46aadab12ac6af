// The list: choosing parts, and turning pages by keys.
"use strict";
const form = document.getElementById("chosen");
const boxes = [...form.querySelectorAll("input[name=inspection]")];
const all = document.getElementById("all");
const told = document.getElementById("chosen-count");
function tell() {
  if (!all) return;
  const count = boxes.filter((box) => box.checked).length;
  told.textContent = count ? told.dataset.some.replace("{n}", count) : told.dataset.none;
  all.checked = count === boxes.length;
  all.indeterminate = count > 0 && count < boxes.length;
  form.classList.toggle("none", !count); // the bar is small until it is needed
}
form.addEventListener("change", (event) => {
  if (event.target === all) for (const box of boxes) box.checked = all.checked;
  tell();
});
window.addEventListener("pageshow", tell);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=checkbox]), select, textarea")) return;
  const link = { ArrowLeft: "a[rel=prev]", ArrowRight: "a[rel=next]" }[event.key];
  if (link) document.querySelector(link)?.click();
  if (event.key === "/") {
    event.preventDefault();
    document.querySelector("input[name=serial]").focus();
  }
});
