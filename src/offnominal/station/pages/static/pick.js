// Choosing all pictures of a form, or none.
"use strict";
for (const button of document.querySelectorAll("[data-all]"))
  button.onclick = () => {
    const boxes = [...button.form.querySelectorAll("input[name=inspections]")];
    const all = boxes.every((box) => box.checked);
    for (const box of boxes) box.checked = !all;
  };
