(function () {
  "use strict";
  var all = function (selector, from) { return Array.from((from || document).querySelectorAll(selector)); };

  // One table of categories at a time; without a script, and in print, all of them.
  all(".tabs").forEach(function (tabs) {
    var buttons = all(".pick button", tabs), panels = all(".tab", tabs);
    var show = function (chosen) {
      buttons.forEach(function (button, at) { button.setAttribute("aria-pressed", at === chosen); });
      panels.forEach(function (panel, at) { panel.classList.toggle("off", at !== chosen); });
    };
    tabs.querySelector(".pick").hidden = false;
    tabs.classList.add("live");
    buttons.forEach(function (button, at) { button.addEventListener("click", function () { show(at); }); });
    show(0);
  });

  // One method's curves at a time.
  var choose = document.querySelector(".choose");
  if (choose) {
    var pick = choose.querySelector("select");
    var showBlock = function () {
      all(".block").forEach(function (block) { block.classList.toggle("off", block.dataset.group !== pick.value); });
    };
    choose.hidden = false;
    pick.addEventListener("change", showBlock);
    showBlock();
  }

  var closed = [];
  window.addEventListener("beforeprint", function () {
    closed = all("details:not([open])");
    closed.forEach(function (each) { each.open = true; });
  });
  window.addEventListener("afterprint", function () {
    closed.forEach(function (each) { each.open = false; });
  });

  // Cards: choose, sort, enlarge. A page may hold several lists of them.
  var form = document.querySelector(".filter");
  if (!form) return;
  var lists = all(".cards"), cards = all(".card");
  var fields = form.elements, said = form.querySelector("output"), shown = cards;

  function apply() {
    var low = parseFloat(fields.low.value), high = parseFloat(fields.high.value);
    var order = fields.sort.value, sign = order[0] === "-" ? -1 : 1;
    cards.forEach(function (card) {
      var data = card.dataset, score = parseFloat(data.score);
      card.hidden = ["category", "defect", "outcome"].some(function (name) {
        return fields[name].value && data[name] !== fields[name].value;
      }) || score < low || score > high;
    });
    shown = [];
    lists.forEach(function (list) {
      var mine = cards.filter(function (card) { return card.parentNode === list; });
      if (order) mine.sort(function (a, b) {
        return sign * (parseFloat(a.dataset.score) - parseFloat(b.dataset.score));
      });
      list.append.apply(list, mine);
      mine = mine.filter(function (card) { return !card.hidden; });
      list.nextElementSibling.hidden = mine.length > 0;
      shown = shown.concat(mine);
    });
    said.textContent = shown.length + " of " + cards.length + " on this page";
  }
  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  form.addEventListener("reset", function () { setTimeout(apply); });
  apply();

  var dialog = document.querySelector("dialog"), current = 0;
  function enlarge(at) {
    current = (at + shown.length) % shown.length;
    var card = shown[current];
    dialog.querySelector(".values").innerHTML = card.querySelector(".values").innerHTML;
    dialog.querySelector(".panels").innerHTML = card.querySelector(".panels").innerHTML;
    all("img", dialog).forEach(function (image) { image.loading = "eager"; });
    if (!dialog.open) dialog.showModal();
  }
  all(".card .open").forEach(function (opener) {
    opener.addEventListener("click", function () { enlarge(shown.indexOf(opener.closest(".card"))); });
  });
  all(".fit-pictures .open").forEach(function (opener) {
    opener.addEventListener("click", function () {
      dialog.querySelector(".values").textContent = opener.querySelector("img").alt;
      dialog.querySelector(".panels").replaceChildren(opener.querySelector("img").cloneNode());
      dialog.showModal();
    });
  });
  dialog.addEventListener("keydown", function (event) {
    var step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    enlarge(current + step);
  });
  dialog.addEventListener("close", function () {
    var opener = shown[current] && shown[current].querySelector(".open");
    if (opener) opener.focus();
  });
  dialog.addEventListener("click", function (event) { if (event.target === dialog) dialog.close(); });
})();
