"use strict";
// How the lineage graph looks, in the colours of the page.
function lineageLook() {
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const font = getComputedStyle(document.body).fontFamily;
  const [ink, soft, line, card, accent, good, second, sunken] =
    ["--ink", "--soft", "--line", "--card", "--accent", "--good", "--second", "--sunken"].map(colour);
  return [
    { selector: "node", style: {
      label: "data(label)", "text-wrap": "wrap", "text-valign": "center", "text-halign": "center", color: ink,
      "font-size": 11, "font-family": font, shape: "round-rectangle", width: 96, height: 38,
      "background-color": card, "border-width": 1.4, "border-color": accent } },
    { selector: "node[type = 'run']", style: {
      shape: "round-tag", "background-color": sunken, "border-color": soft, width: 150, "text-margin-x": -8 } },
    { selector: "node[type = 'reuse']", style: {
      shape: "cut-rectangle", "border-style": "dashed", "border-color": good, width: 138, height: 36, "font-size": 10 } },
    { selector: "node[type = 'more']", style: {
      shape: "ellipse", width: 84, height: 26, "border-style": "dotted", "border-color": second, "font-size": 10, color: soft } },
    { selector: "node[?isRoot]", style: { "border-width": 3 } },
    { selector: "edge", style: {
      width: 1.3, "line-color": soft, "line-opacity": 0.55, "target-arrow-color": soft, "target-arrow-shape": "triangle",
      "arrow-scale": 0.8, "curve-style": "bezier" } },
    { selector: "edge[type = 'reuse']", style: {
      "line-style": "dashed", "line-color": good, "target-arrow-color": good, "line-opacity": 0.9 } },
    { selector: "edge[type = 'more']", style: { "line-style": "dotted", "target-arrow-shape": "none" } },
    { selector: "node.unseen", style: { "border-style": "double", "border-width": 4 } },
    { selector: "edge[type = 'gap']", style: {
      "line-style": "dotted", width: 2, "target-arrow-shape": "none", label: "data(label)", "font-size": 10, color: soft,
      "text-background-color": card, "text-background-opacity": 1, "text-background-padding": 3 } },
    { selector: ".away", style: { display: "none" } },
    { selector: "edge.lit", style: { width: 3, "line-color": accent, "target-arrow-color": accent, "line-opacity": 1 } },
    { selector: "node.lit", style: { "border-color": accent, "border-width": 2.4 } },
    { selector: "node.chosen", style: { "background-color": colour("--accent-soft"), "border-width": 3, "border-color": accent } },
  ];
}
