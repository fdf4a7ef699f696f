"use strict";
document.documentElement.classList.add("js");
const all = (selector, root = document) => Array.from(root.querySelectorAll(selector));

// Videos play while they are in view, unless paused or unless the reader asked for little motion.
const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
let paused = calm;
const inView = new Set();
const videos = all("video");
const button = document.getElementById("play");
const play = (video) => video.play().catch(() => {});
const label = () => { if (button) { button.textContent = paused ? "Play all" : "Pause all"; } };
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) { inView.add(target); if (!paused) { play(target); } }
    else { inView.delete(target); target.pause(); }
  }
}, { threshold: 0.2 });
videos.forEach((video) => watcher.observe(video));
if (button) {
  label();
  button.addEventListener("click", () => {
    paused = !paused;
    label();
    inView.forEach((video) => (paused ? video.pause() : play(video)));
  });
}
// One click starts the clips of a prompt together from the beginning.
all(".pair").forEach((pair) => {
  const clips = all("video", pair);
  clips.forEach((clip) => clip.addEventListener("click", () => clips.forEach((c) => { c.currentTime = 0; play(c); })));
});

// Lineage: a chosen stage shows its details and lights its edges.
const nodes = all(".node");
const details = all(".detail");
const choose = (id) => {
  nodes.forEach((n) => n.classList.toggle("chosen", n.dataset.id === id));
  details.forEach((d) => { d.hidden = d.dataset.id !== id; });
  all(".edge").forEach((e) => e.classList.toggle("lit", e.dataset.from === id || e.dataset.to === id));
};
nodes.forEach((node) => node.addEventListener("click", (event) => { event.preventDefault(); choose(node.dataset.id); }));
all("a[data-node]").forEach((link) => link.addEventListener("click", () => choose(link.dataset.node)));
if (details.length) { choose(details[details.length - 1].dataset.first || details[0].dataset.id); }

// Where the reader is.
const links = all("nav a");
const spy = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) { links.forEach((a) => a.classList.toggle("here", a.hash === "#" + target.id)); }
  }
}, { rootMargin: "-20% 0px -70% 0px" });
all("main section[id]").forEach((section) => spy.observe(section));

all("button[data-copy]").forEach((copy) => copy.addEventListener("click", async () => {
  const text = document.getElementById(copy.dataset.copy).textContent;
  try {
    await navigator.clipboard.writeText(text);
    copy.textContent = "Copied";
  } catch {
    const range = document.createRange();
    range.selectNodeContents(document.getElementById(copy.dataset.copy));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    copy.textContent = "Selected";
  }
  setTimeout(() => { copy.textContent = "Copy"; }, 1600);
}));
