"use strict";
document.documentElement.classList.add("js");
// Where the pages' names do not fit beside each other, the one that is open is in sight.
document.querySelector(".site nav .here")?.scrollIntoView({ inline: "center", block: "nearest" });

// Filters apply as they are changed; without scripts their button does it.
document.addEventListener("change", (event) => {
  const form = event.target.closest("form[data-instant]");
  if (form) { form.requestSubmit(); }
});

// A log opens at its end and stays there while it grows, unless the reader has scrolled away.
const logs = Array.from(document.querySelectorAll("pre[data-follow]"));
const toEnd = (log) => { log.scrollTop = log.scrollHeight; };
logs.forEach((log) => {
  toEnd(log);
  let following = true;
  log.addEventListener("scroll", () => { following = log.scrollTop + log.clientHeight >= log.scrollHeight - 20; });
  new MutationObserver(() => { if (following) { toEnd(log); } }).observe(log, { childList: true, subtree: true });
});
