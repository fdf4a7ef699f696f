"use strict";
// Pointer on a curve: nearest step and its value.
document.querySelectorAll(".chart").forEach((chart) => {
  const svg = chart.querySelector("svg");
  const readout = chart.querySelector(".readout");
  const cursor = chart.querySelector(".cursor");
  const points = (svg.dataset.points || "").split(";").filter(Boolean).map((p) => p.split(","));
  if (!points.length) { return; }
  const show = (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const near = points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
    cursor.setAttribute("cx", near[0]);
    cursor.setAttribute("cy", near[1]);
    cursor.removeAttribute("visibility");
    readout.textContent = `${chart.closest("[data-each]")?.dataset.each || "step"} ${near[2]}: ${near[3]}`;
  };
  chart.addEventListener("pointermove", show);
  chart.addEventListener("pointerdown", show);
  chart.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); readout.textContent = ""; });
});
