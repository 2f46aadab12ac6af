// Pictures of good parts: dropped, chosen, or taken by this device's camera; sent one by one, so
// that one that cannot be used, or a connection that is lost, costs no other.
"use strict";
const drop = document.getElementById("drop");
if (drop) {
  const kept = document.getElementById("kept");
  const refused = document.getElementById("refused");
  const sending = document.getElementById("sending");
  const csrf = document.querySelector("meta[name=csrf]").content;
  const PICTURE = /\.(jpe?g|jpe|jfif|png|bmp|webp|tiff?)$/i;
  drop.querySelector("[data-without-script]").remove();
  drop.querySelector("[data-with-script]").hidden = false;

  const show = (name) => {
    const item = document.createElement("li");
    const figure = item.appendChild(document.createElement("figure"));
    const image = figure.appendChild(document.createElement("img"));
    image.alt = "";
    image.src = `${kept.dataset.small}${encodeURIComponent(name)}/small`;
    const pick = figure.appendChild(document.createElement("label"));
    pick.className = "pick";
    const words = pick.appendChild(document.createElement("span"));
    words.className = "unseen";
    words.textContent = `${kept.dataset.pick} ${name}`;
    const box = pick.appendChild(document.createElement("input"));
    Object.assign(box, { type: "checkbox", name: "names", value: name });
    const caption = figure.appendChild(document.createElement("figcaption"));
    caption.textContent = caption.title = name;
    kept.append(item);
    const count = document.getElementById("count");
    count.textContent = count.dataset.words.replace("{number}", kept.children.length);
    document.getElementById("take-out").hidden = document.getElementById("fit").hidden = false;
  };
  const refuse = ({ file, why }) => {
    refused.hidden = false;
    refused.querySelector("ul").appendChild(document.createElement("li")).textContent = `${file}: ${why}`;
  };

  const queue = [];
  let total = 0, busy = false;
  const send = async () => {
    if (busy) return;
    busy = true;
    while (queue.length) {
      sending.textContent = sending.dataset.words
        .replace("{done}", total - queue.length + 1).replace("{total}", total);
      const form = new FormData();
      form.append("csrf", csrf);
      const file = queue[0];
      form.append("files", file, file.name);
      try {
        const answer = await fetch(drop.action, { method: "POST", body: form,
          headers: { Accept: "application/json", "X-CSRF-Token": csrf } });
        if (answer.ok) {
          const told = await answer.json();
          told.new.forEach(show);
          told.refused.forEach(refuse);
        } else refuse({ file: file.name, why: `${answer.status} ${answer.statusText}` });
        queue.shift();
      } catch {
        sending.textContent = sending.dataset.lost;
        queue.length = total = 0;
        busy = false;
        return;
      }
    }
    sending.textContent = "";
    total = 0;
    busy = false;
  };
  const give = (files) => {
    queue.push(...files);
    total += files.length;
    send();
  };

  const choose = (folder) => {
    const input = document.createElement("input");
    Object.assign(input, { type: "file", multiple: true, accept: "image/*", webkitdirectory: folder });
    // Of a folder everything comes; of files only what somebody chose, and is told why it is not taken.
    input.onchange = () => give([...input.files].filter((one) => !folder || PICTURE.test(one.name)));
    input.click();
  };
  for (const button of drop.querySelectorAll("[data-choose]"))
    button.onclick = () => choose(button.dataset.choose === "folder");

  // A folder that was dropped is walked through; readEntries gives a hundred at a time.
  const walk = async (entry) => {
    if (entry.isFile) {
      if (!PICTURE.test(entry.name)) return [];
      return [await new Promise((done, failed) => entry.file(done, failed))];
    }
    const reader = entry.createReader(), found = [];
    for (;;) {
      const some = await new Promise((done, failed) => reader.readEntries(done, failed));
      if (!some.length) return found;
      for (const one of some) found.push(...(await walk(one)));
    }
  };
  const over = (event) => { event.preventDefault(); drop.classList.add("over"); };
  drop.ondragover = drop.ondragenter = over;
  drop.ondragleave = (event) => { if (!drop.contains(event.relatedTarget)) drop.classList.remove("over"); };
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", async (event) => {  // beside the field as well: nobody aims well
    event.preventDefault();
    drop.classList.remove("over");
    const entries = [...event.dataTransfer.items].map((one) => one.webkitGetAsEntry?.()).filter(Boolean);
    const files = [...event.dataTransfer.files];
    if (entries.some((one) => one.isDirectory))
      for (const entry of entries) give(await walk(entry));
    else give(files);
  });

  const camera = document.getElementById("camera");
  const video = camera.querySelector("video");
  const start = drop.querySelector("[data-camera]");
  start.hidden = !navigator.mediaDevices?.getUserMedia;
  start.onclick = async () => {
    camera.hidden = false;
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia(
        { video: { facingMode: "environment", width: { ideal: 1920 } }, audio: false });
      camera.querySelector("[data-take]").focus();
    } catch {
      const told = camera.querySelector("[data-trouble]");
      told.textContent = told.dataset.trouble;
    }
  };
  camera.querySelector("[data-close]").onclick = () => {
    video.srcObject?.getTracks().forEach((track) => track.stop());
    camera.hidden = true;
    start.focus();
  };
  camera.querySelector("[data-take]").onclick = () => {
    if (!video.videoWidth) return;
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    const name = `camera-${new Date().toISOString().replace(/[:.]/g, "-")}.png`;
    canvas.toBlob((blob) => give([new File([blob], name, { type: "image/png" })]), "image/png");
  };
}
