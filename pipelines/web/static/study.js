// The page of a task: ranks given once, keys, videos in step, and choices kept until they are saved.
(() => {
  const form = document.getElementById("task");
  if (!form) { return; }
  const groups = [...form.querySelectorAll("fieldset")];
  const videos = [...form.querySelectorAll("video")];
  const fault = document.getElementById("fault");
  const unique = form.classList.contains("rank") && form.dataset.ties === "no";
  const chosen = (group) => group.querySelector("input:checked");

  // Choices that were not sent yet outlive a closed window; what the server has comes first.
  const draft = `draft ${location.pathname}`;
  const keep = () => {
    try { localStorage.setItem(draft, new URLSearchParams(new FormData(form)).toString()); } catch { /* no storage here */ }
  };
  const restore = () => {
    try {
      if (groups.some(chosen)) { localStorage.removeItem(draft); return; }
      for (const [name, value] of new URLSearchParams(localStorage.getItem(draft) ?? "")) {
        const input = [...form.querySelectorAll("input")].find((i) => i.name === name && i.value === value);
        if (input) { input.checked = true; }
      }
    } catch { /* no storage here */ }
  };

  const choose = (input) => {
    input.checked = true;
    const own = input.closest("fieldset");
    own.classList.remove("unanswered");
    if (unique) {
      for (const group of groups) {
        const other = chosen(group);
        if (group !== own && other && group.dataset.criterion === own.dataset.criterion && other.value === input.value) {
          other.checked = false;
        }
      }
    }
    keep();
  };
  form.addEventListener("change", (event) => choose(event.target));

  form.addEventListener("submit", (event) => {
    const missing = groups.filter((group) => !chosen(group));
    for (const group of groups) { group.classList.toggle("unanswered", missing.includes(group)); }
    if (missing.length === 0) {
      for (const button of form.querySelectorAll("button")) { button.disabled = true; }
      return;
    }
    event.preventDefault();
    fault.textContent = missing.length === 1 ? "One choice is missing." : `${missing.length} choices are missing.`;
    fault.hidden = false;
    missing[0].querySelector("input").focus();
  });

  // A digit chooses in the group under the focus, else in the first open one, and goes on to the next open one.
  const type = (digit) => {
    const focused = document.activeElement?.closest?.("fieldset");
    const group = groups.includes(focused) ? focused : groups.find((g) => !chosen(g));
    const input = group?.querySelector(`input[value="${digit}"]`);
    if (!input) { return false; }
    choose(input);
    const from = groups.indexOf(group);
    const next = [...groups.slice(from + 1), ...groups.slice(0, from)].find((g) => !chosen(g));
    (next ? next.querySelector("input") : form.querySelector("button.primary")).focus();
    return true;
  };

  const pause = document.getElementById("pause");
  const play = (on) => {
    for (const video of videos) { if (on) { video.play().catch(() => {}); } else { video.pause(); } }
    pause.textContent = on ? "Pause" : "Play";
    pause.setAttribute("aria-pressed", String(!on));
  };
  const running = () => pause.textContent === "Pause";
  pause.addEventListener("click", () => play(!running()));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) { return; }
    const onButton = event.target.closest?.("button, a");
    if (/^[0-9]$/.test(event.key) && type(event.key)) { event.preventDefault(); }
    if (event.key.toLowerCase() === "p") { play(!running()); }
    if (event.key === "Enter" && !onButton) { event.preventDefault(); form.requestSubmit(); }
  });

  // Videos of one length begin together, again and again.
  const together = () => { for (const video of videos) { video.currentTime = 0; } };
  let ready = 0;
  for (const video of videos) {
    video.addEventListener("canplaythrough", () => { if (++ready === videos.length) { together(); } }, { once: true });
  }
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) { play(false); }
  restore();
  addEventListener("pageshow", () => { for (const button of form.querySelectorAll("button")) { button.disabled = false; } });
})();
