// Pictures to try are judged one by one, and shown as they come.
"use strict";
const form = document.getElementById("try");
if (form) {
  const input = form.querySelector("input[type=file]");
  const told = form.querySelector("[data-told]");
  const csrf = document.querySelector("meta[name=csrf]").content;
  form.querySelector("[data-send]").remove();
  const plain = form.querySelector("[data-plain]");
  plain.className = "unseen";
  input.tabIndex = -1;
  const choose = form.querySelector("[data-choose]");
  choose.hidden = false;
  choose.onclick = () => input.click();
  const queue = [];
  let busy = false;
  const judge = async () => {
    if (busy) return;
    busy = true;
    for (let file; (file = queue.shift());) {
      told.textContent = told.dataset.words.replace("{name}", file.name);
      const body = new FormData();
      body.append("csrf", csrf);
      body.append("files", file, file.name);
      try {
        const answer = await fetch(form.action, { method: "POST", body,
          headers: { Accept: "text/x-part", "X-CSRF-Token": csrf } });
        if (!answer.ok) throw new Error(String(answer.status));
        document.getElementById("tried").insertAdjacentHTML("afterbegin", await answer.text());
        told.textContent = "";
      } catch {
        told.textContent = told.dataset.lost;
        queue.length = 0;
      }
    }
    busy = false;
  };
  const give = (files) => { queue.push(...files); judge(); };
  input.onchange = () => { give(input.files); input.value = ""; };
  form.onsubmit = (event) => event.preventDefault();
  document.addEventListener("dragover", (event) => { event.preventDefault(); form.classList.add("over"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) form.classList.remove("over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    give(event.dataTransfer.files);
  });
}
