"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const cards = [...document.querySelectorAll(".card")];
  const form = byId("filters"), lightbox = byId("lightbox"), stage = byId("stage");
  const FIELDS = ["class", "split", "reason"];
  let visible = cards, current = null;

  const matches = (card, wanted) =>
    (!wanted.class || card.dataset.classes.split(" ").includes(wanted.class)) &&
    (!wanted.split || card.dataset.split === wanted.split) &&
    (!wanted.reason || card.dataset.reasons.split(" ").includes(wanted.reason));

  function apply() {
    const wanted = Object.fromEntries(FIELDS.map((name) => [name, form.elements[name].value]));
    visible = cards.filter((card) => matches(card, wanted));
    const shown = new Set(visible);
    for (const card of cards) {
      card.hidden = !shown.has(card);
      for (const path of card.querySelectorAll("path"))
        path.classList.toggle("dim", Boolean(wanted.class) && path.dataset.class !== wanted.class);
    }
    byId("count").textContent = `${visible.length} of ${cards.length} images`;
    byId("none").hidden = visible.length > 0;
  }

  // The address after # holds the filters and the open image, so that a view can be kept as a link.
  function write() {
    const state = new URLSearchParams();
    for (const name of FIELDS) if (form.elements[name].value) state.set(name, form.elements[name].value);
    if (current) state.set("image", current.id);
    history.replaceState(null, "", `#${state}`);
  }

  function read() {
    const hash = location.hash.slice(1);
    if (hash && !hash.includes("=")) return;
    const state = new URLSearchParams(hash);
    for (const name of FIELDS) {
      form.elements[name].value = state.get(name) || "";
      if (form.elements[name].selectedIndex < 0) form.elements[name].value = "";
    }
    apply();
    const card = cards.find((item) => item.id === state.get("image"));
    if (card) open(card);
    else {
      lightbox.close();
      if (hash) byId("images").scrollIntoView();
    }
  }

  function label(path) {
    const size = 13 / (path.getScreenCTM()?.a || 1), box = path.getBBox();
    const atEnd = box.x > 0.8 * path.parentNode.getBBox().width && box.x > 8 * size;
    const text = document.createElementNS(path.namespaceURI, "text");
    text.setAttribute("x", atEnd ? box.x + box.width : box.x);
    text.setAttribute("text-anchor", atEnd ? "end" : "start");
    text.setAttribute("y", Math.max(box.y - size * 0.3, size));
    text.setAttribute("font-size", size);
    text.textContent = path.querySelector("title").textContent.split(" · ")[0];
    path.parentNode.append(text);
  }

  function objectRow(path) {
    const row = document.createElement("li"), swatch = document.createElement("i");
    swatch.className = `swatch ${path.classList[0]}`;
    row.append(swatch, path.querySelector("title").textContent);
    row.tabIndex = 0;
    for (const [start, end] of [["mouseenter", "mouseleave"], ["focus", "blur"]]) {
      row.addEventListener(start, () => path.classList.add("strong"));
      row.addEventListener(end, () => path.classList.remove("strong"));
    }
    return row;
  }

  function open(card) {
    current = card;
    const picture = card.querySelector(".picture");
    stage.replaceChildren(...[...picture.children].map((child) => child.cloneNode(true)));
    byId("lightbox-title").textContent = card.querySelector("h3").textContent;
    byId("full").href = picture.getAttribute("href");
    byId("facts").replaceChildren(...[...card.querySelectorAll(".text p")].map((child) => child.cloneNode(true)));
    const place = visible.indexOf(card);
    byId("position").textContent = place < 0 ? "" : `${place + 1} of ${visible.length}`;
    if (!lightbox.open) lightbox.showModal();
    const paths = [...stage.querySelectorAll("path")];
    byId("objects").replaceChildren(...paths.map(objectRow));
    if (paths.length <= 40) paths.forEach(label);
    write();
  }

  function step(by) {
    if (visible.length) open(visible[(visible.indexOf(current) + by + visible.length) % visible.length]);
  }

  function masks(on) {
    document.body.classList.toggle("plain", !on);
    byId("masks").checked = on;
    byId("toggle").setAttribute("aria-pressed", on);
  }

  form.addEventListener("input", () => { apply(); write(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { masks(true); apply(); write(); }));
  byId("masks").addEventListener("change", (event) => masks(event.target.checked));
  byId("toggle").addEventListener("click", () => masks(document.body.classList.contains("plain")));
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => lightbox.close());
  lightbox.addEventListener("click", (event) => { if (event.target === lightbox) lightbox.close(); });
  lightbox.addEventListener("close", () => {
    const card = current;
    current = null;
    write();
    card?.querySelector(".picture").focus();
  });
  lightbox.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else if (event.key === "m") masks(document.body.classList.contains("plain"));
    else return;
    event.preventDefault();
  });
  document.addEventListener("click", (event) => {
    const chip = event.target.closest("button.chip"), picture = event.target.closest(".card .picture");
    if (chip) {
      if (lightbox.open) lightbox.close();
      form.elements.reason.value = chip.dataset.reason;
      apply();
      write();
      byId("images").scrollIntoView();
    } else if (picture && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      open(picture.closest(".card"));
    }
  });
  addEventListener("hashchange", read);
  form.hidden = false;
  apply();
  read();
})();
