"use strict";
document.documentElement.classList.add("js");
const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));

// The sheet: cards that match, in the order chosen, a page of them at a time.
const PAGE = 120;
const sheet = document.getElementById("sheet");
if (sheet) {
  const form = document.getElementById("filters");
  const matched = document.getElementById("matched");
  const more = document.getElementById("more");
  const groups = JSON.parse(sheet.dataset.groups);
  const cards = all(".clip", sheet).map((node) => ({
    node,
    fate: node.dataset.fate,
    source: node.dataset.source,
    then: node.dataset.then || node.dataset.fate,
    place: Number(node.dataset.place),
    scores: JSON.parse(node.dataset.scores),
    text: all(".words, .path, details p", node).map((n) => n.textContent).join(" ").toLowerCase(),
  }));
  let pages = 1;

  const takes = (fate, then, wanted) => {
    if (!wanted) { return true; }
    if (wanted === "~") { return (fate === "kept") !== (then === "kept"); }
    return wanted === "!kept" ? fate !== "kept" : fate === wanted;
  };
  const ordered = (found, order) => {
    if (!order) { return found.sort((a, b) => a.place - b.place); }
    const name = order.replace(/^-/, "");
    const sign = order.startsWith("-") ? -1 : 1;
    const last = (card) => (name in card.scores ? sign * card.scores[name] : Infinity);
    return found.sort((a, b) => last(a) - last(b) || a.place - b.place);
  };
  const show = () => {
    const { fate, source, order, words } = Object.fromEntries(new FormData(form));
    const asked = words.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const found = ordered(cards.filter((card) => takes(card.fate, card.then, fate) && (!source || card.source === source)
      && asked.every((word) => card.text.includes(word))), order);
    const shown = found.slice(0, pages * PAGE);
    const visible = new Set(shown);
    cards.forEach((card) => { card.node.hidden = !visible.has(card); });
    shown.forEach((card) => sheet.append(card.node));
    const total = groups.reduce((sum, [f, s, n, t]) => sum + (takes(f, t, fate) && (!source || s === source) ? n : 0), 0);
    const count = (n) => n.toLocaleString("en");
    matched.textContent = `${count(shown.length)} shown of ${count(found.length)} on this page that match`
      + (asked.length ? "" : `; ${count(total)} in the whole table`);
    more.hidden = shown.length === found.length;
  };
  const restart = () => { pages = 1; show(); };
  form.addEventListener("input", restart);
  form.addEventListener("reset", () => setTimeout(restart));
  form.addEventListener("submit", (event) => event.preventDefault());
  more.querySelector("button").addEventListener("click", () => { pages += 1; show(); });

  // A cell of the map of rejects chooses its rule and source.
  all("a[data-fate]").forEach((link) => link.addEventListener("click", () => {
    form.reset();
    form.elements.fate.value = link.dataset.fate;
    form.elements.source.value = link.dataset.source;
    restart();
  }));
  // A link to a clip that the filter hides shows it.
  const reveal = () => {
    const card = cards.find(({ node }) => `#${node.id}` === location.hash);
    if (card && card.node.hidden) { form.reset(); pages = Math.ceil((card.place + 1) / PAGE); show(); card.node.scrollIntoView(); }
  };
  addEventListener("hashchange", reveal);
  show();
  reveal();
}

// A click plays a reconstruction; without scripts the browser's own controls do.
all("video").forEach((video) => {
  video.controls = false;
  video.title = "click to play or pause";
  video.tabIndex = 0;
  const toggle = () => (video.paused ? video.play().catch(() => {}) : video.pause());
  video.addEventListener("click", toggle);
  video.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(); } });
});

// Where the reader is.
const links = all("nav a");
const spy = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) { links.forEach((a) => a.classList.toggle("here", a.hash === "#" + target.id)); }
  }
}, { rootMargin: "-20% 0px -70% 0px" });
all("main section[id]").forEach((section) => spy.observe(section));
