"use strict";
// The lineage graph: opens with what the server gives for its root and grows a bounded step at a time.
(() => {
  const box = document.getElementById("lineage-graph");
  if (!box || typeof cytoscape === "undefined") { return; }
  const root = box.dataset.root;
  const canvas = document.getElementById("canvas");
  const told = document.getElementById("chosen");
  const reuse = document.getElementById("show-reuse");
  const MOST = 200; // nodes that are laid out in a moment and can be read; beyond, the farthest are folded away
  const AFTER_FOLD = 150; // nodes that stay then, so that not every step folds
  const LONGEST = 80; // nodes of the way to the root that stay, the rest of it is one edge
  const next = new Map(); // "up:ID" -> where the neighbours that were not fetched yet begin
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let opened = []; // "up:ID", in the order of expanding: what the address keeps
  let chosen = root;
  let births = 0; // nodes in the order they came
  box.hidden = false;

  const cy = cytoscape({ container: canvas, style: lineageLook(), minZoom: 0.05, maxZoom: 3, boxSelectionEnabled: false });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => cy.style(lineageLook()));

  const say = (text) => { told.textContent = text; };
  const plural = (count, one) => `${count} ${one}${count === 1 ? "" : "s"}`;

  const split = (place) => [place.slice(0, place.indexOf(":")), place.slice(place.indexOf(":") + 1)];
  const real = () => cy.nodes("[type != 'more']");

  // Neighbours of a node that are not in the drawing: ports of a run, runs of an artifact.
  const left = (node, direction) => {
    const edges = (direction === "up" ? node.incomers("edge") : node.outgoers("edge")).filter("[type = 'input'], [type = 'output']");
    const here = node.data("type") === "run" ? edges.length : new Set(edges.map((e) => (direction === "up" ? e.source() : e.target()).id())).size;
    return Math.max(0, (node.data(direction) || 0) - here);
  };

  // Graph data from the server, added once each.
  const add = (graph) => {
    const fresh = graph.nodes.filter((node) => cy.getElementById(node.id).empty());
    cy.add(fresh.map((node) => ({ group: "nodes", data: { ...node, isRoot: node.id === root, born: ++births } })));
    const ids = new Set();
    const edges = graph.edges.filter((edge) => !ids.has(edge.id) && ids.add(edge.id) && cy.getElementById(edge.id).empty());
    cy.add(edges.map((edge) => ({ group: "edges", data: edge })));
    for (const place of graph.opened) { if (!opened.includes(place)) { opened.push(place); } }
    for (const [place, at] of Object.entries(graph.more)) { next.set(place, at.left ? at.next : 0); }
    return fresh.map((node) => node.id);
  };

  // "12 more" beside every node that was expanded and has neighbours elsewhere; a double border where none was asked for.
  const mark = () => cy.batch(() => {
    cy.nodes("[type = 'more']").remove();
    cy.nodes().removeClass("unseen");
    const places = new Set(opened);
    real().forEach((node) => {
      for (const direction of ["up", "down"]) {
        const [place, count] = [`${direction}:${node.id()}`, left(node, direction)];
        if (!count) { continue; }
        if (!places.has(place)) { node.addClass("unseen"); continue; }
        const [id, label] = [`more:${place}`, `${count} more`];
        cy.add({ group: "nodes", data: { id, type: "more", label, words: label, place } });
        const [source, target] = direction === "up" ? [id, node.id()] : [node.id(), id];
        cy.add({ group: "edges", data: { id: `edge:${id}`, source, target, type: "more" } });
      }
    });
    cy.nodes("[type = 'reuse']").toggleClass("away", !reuse.checked);
  });

  const wayTo = (id) => cy.elements().not(".away").aStar({ root: `[id = "${root}"]`, goal: cy.getElementById(id), directed: false }).path || cy.collection();
  const steps = (way) => way.edges().reduce((sum, edge) => sum + (edge.data("steps") || 1), 0);

  // One edge instead of the long first part of a way, as far as a node of it.
  const bridge = (way, node) => {
    const upward = way.edges()[0].target().id() === root;
    const from = wayTo(node.id());
    const id = `gap:${node.id()}`;
    cy.getElementById(id).remove();
    const [source, target] = upward ? [node.id(), root] : [root, node.id()];
    cy.add({ group: "edges", data: { id, source, target, type: "gap", steps: steps(from), label: `${steps(from)} steps` } });
  };

  // Take away what is farthest from a node, so that the drawing stays small wherever somebody walks; gives how many.
  const fold = (id, direction, fresh) => {
    if (real().length <= MOST) { return 0; }
    const distance = new Map();
    cy.nodes("[type = 'more']").remove();
    cy.elements().bfs({ roots: cy.getElementById(id), directed: false, visit: (node, _e, _from, _i, depth) => { distance.set(node.id(), depth); } });
    const way = wayTo(id);
    const near = way.nodes().toArray().slice(-LONGEST);
    const keep = new Set([root, id, ...fresh, ...near.map((node) => node.id())]);
    if (near.length < way.nodes().length) { bridge(way, near[0]); }
    // Of a wide fan many go before the line on the other side of its node does.
    const behind = direction === "down" ? cy.getElementById(id).predecessors() : cy.getElementById(id).successors();
    const far = (node) => (distance.get(node.id()) ?? Infinity) / (behind.has(node) ? 4 : 1);
    const rest = real().filter((node) => !keep.has(node.id())).sort((a, b) => far(a) - far(b) || b.data("born") - a.data("born"));
    const gone = rest.slice(Math.max(0, AFTER_FOLD - keep.size), rest.length);
    const went = new Set(gone.map((node) => node.id()));
    gone.remove();
    opened = opened.filter((place) => !went.has(split(place)[1]));
    return went.size;
  };

  const arrange = (keep) => {
    const anchor = keep && cy.getElementById(keep);
    const before = anchor && anchor.nonempty() ? { ...anchor.renderedPosition() } : null;
    cy.elements().not(".away").layout({ name: "dagre", rankDir: "LR", nodeSep: 14, rankSep: 34, edgeSep: 6, fit: !before, padding: 20, animate: false }).run();
    if (before) { // what was clicked stays under the pointer
      const after = anchor.renderedPosition();
      cy.panBy({ x: before.x - after.x, y: before.y - after.y });
    }
  };

  const choose = (id, follow) => {
    const node = cy.getElementById(id);
    if (node.empty()) { return; }
    chosen = id;
    cy.elements().removeClass("chosen lit");
    node.addClass("chosen");
    const way = wayTo(id);
    way.addClass("lit");
    const data = node.data();
    const open = box.querySelector("[data-do=open]");
    open.href = data.address || open.href;
    open.toggleAttribute("aria-disabled", !data.address);
    for (const direction of ["up", "down"]) { box.querySelector(`[data-do=${direction}]`).disabled = !canExpand(id, direction); }
    const far = way.nonempty() && id !== root ? `, ${plural(steps(way), "step")} from this artifact` : "";
    const facts = data.type === "artifact" ? `: made by ${plural(data.up, "run")}, read by ${plural(data.down, "run")}`
      : data.type === "run" ? `: ${plural(data.up, "input")}, ${plural(data.down, "output")}${data.reused ? `, reused ${plural(data.reused, "time")}` : ""}` : "";
    say(`${data.words}${facts}${far}`);
    if (follow) { cy.animate({ center: { eles: node }, duration: calm ? 0 : 150 }); }
  };

  const isInSight = (node) => {
    const { x1, y1, x2, y2 } = node.renderedBoundingBox();
    return x1 >= 0 && y1 >= 0 && x2 <= cy.width() && y2 <= cy.height();
  };

  const canExpand = (id, direction) => {
    const node = cy.getElementById(id);
    return node.data("type") === "more" || left(node, direction) > 0;
  };

  const fetchGraph = async (address) => {
    const answer = await fetch(address, { headers: { accept: "application/json" } });
    if (!answer.ok) { throw new Error(`the server answered ${answer.status}`); }
    return answer.json();
  };

  // One step of neighbours that are not here yet. What was folded away lies before what was never asked for: go round once.
  const fetchStep = async (id, direction) => {
    const place = `${direction}:${id}`;
    for (let round = 0, fresh = []; ; ) {
      const offset = next.get(place) || 0;
      const graph = await fetchGraph(`/lineage/step?${new URLSearchParams({ node: id, direction, offset })}`);
      fresh = add(graph);
      if (!graph.more[place].left) { round += 1; }
      if (fresh.length || round > 1 || !left(cy.getElementById(id), direction)) { return fresh; }
    }
  };

  const expand = async (id, direction) => {
    const data = cy.getElementById(id).data();
    if (data.type === "more") { [direction, id] = split(data.place); }
    if (!canExpand(id, direction)) { say(direction === "up" ? "nothing more it was made from" : "nothing more was made from it"); return; }
    box.setAttribute("aria-busy", "true");
    try {
      const fresh = await fetchStep(id, direction);
      const gone = fold(id, direction, fresh);
      mark();
      arrange(id);
      choose(id, !isInSight(cy.getElementById(id)));
      keepAddress();
      const rest = left(cy.getElementById(id), direction);
      const away = gone ? `; the ${gone} farthest from here were folded away, expanding brings them back` : "";
      say(`${plural(fresh.length, "node")} more${rest ? `, ${rest} left to expand` : ""}; ${real().length} shown${away}`);
    } catch (error) { say(`could not expand: ${error.message}`); } finally { box.removeAttribute("aria-busy"); }
  };

  // The address keeps what was expanded beyond the first graph, so that it can be shared.
  let firstOpened = [];
  const keepAddress = () => {
    const extra = opened.filter((place) => !firstOpened.includes(place)).slice(0, 60);
    history.replaceState(null, "", extra.length ? `#graph=${extra.map(encodeURIComponent).join(",")}` : location.pathname + location.search);
  };
  const wanted = () => (location.hash.startsWith("#graph=") ? location.hash.slice(7).split(",").map(decodeURIComponent) : [])
    .filter((place) => /^(up|down):[0-9a-z]{8,64}$/.test(place)).slice(0, 60);

  const begin = async (extra) => {
    cy.elements().remove();
    next.clear();
    opened = [];
    try {
      add(await fetchGraph(`/artifacts/${root}/graph`));
      firstOpened = [...opened];
      for (const place of extra) {
        const [direction, node] = split(place);
        if (cy.getElementById(node).nonempty() && !opened.includes(place) && real().length < MOST) { await fetchStep(node, direction); }
      }
    } catch (error) { say(`the graph could not be read: ${error.message}`); return; }
    mark();
    arrange(null);
    show();
    choose(root);
    box.dataset.ready = "true";
  };

  // A canvas as high as the graph needs; where all of it would be too small to read, the root and what is round it.
  const show = () => {
    const readable = Math.max(Math.min(cy.zoom(), 1), 0.75);
    canvas.style.height = `${Math.min(Math.max(cy.elements().boundingBox().h * readable + 60, 240), 620)}px`;
    cy.resize();
    cy.fit(undefined, 20);
    if (cy.zoom() > 1) { cy.zoom(1); cy.center(); }
    if (cy.zoom() < 0.7) {
      cy.zoom(0.8);
      cy.center(cy.getElementById(root));
      const { x1, x2 } = cy.elements().renderedBoundingBox(); // no empty half where the graph ends on one side
      if (x2 < cy.width() - 20) { cy.panBy({ x: cy.width() - 20 - x2, y: 0 }); }
      else if (x1 > 20) { cy.panBy({ x: 20 - x1, y: 0 }); }
    }
  };

  // Arrow keys: the nearest node in that direction, those joined by an edge first.
  const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const step = ([dx, dy]) => {
    const here = cy.getElementById(chosen);
    const at = here.position();
    const near = here.neighborhood("node");
    let best = null;
    let least = Infinity;
    cy.nodes().not(".away").not(here).forEach((node) => {
      const [x, y] = [node.position("x") - at.x, node.position("y") - at.y];
      const ahead = x * dx + y * dy;
      if (ahead < 5) { return; }
      const aside = Math.abs(x * dy) + Math.abs(y * dx);
      const cost = ahead + 2 * aside + (dx && near.has(node) ? -1000 : 0);
      if (cost < least) { [best, least] = [node, cost]; }
    });
    if (best) { choose(best.id(), true); }
  };
  const zoom = (factor) => cy.zoom({ level: cy.zoom() * factor, renderedPosition: { x: canvas.clientWidth / 2, y: canvas.clientHeight / 2 } });
  const open = () => { const { address } = cy.getElementById(chosen).data(); if (address) { location.href = address; } };
  const expandMain = () => {
    const data = cy.getElementById(chosen).data();
    expand(chosen, data.type === "more" || canExpand(chosen, "up") ? "up" : "down");
  };
  const DO = {
    up: () => expand(chosen, "up"), down: () => expand(chosen, "down"), in: () => zoom(1.3), out: () => zoom(1 / 1.3),
    fit: () => cy.fit(undefined, 20), reset: () => { history.replaceState(null, "", location.pathname + location.search); begin([]); },
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) { return; }
    const action = KEYS[event.key] ? () => step(KEYS[event.key])
      : { u: DO.up, d: DO.down, o: open, "+": DO.in, "=": DO.in, "-": DO.out, 0: DO.fit, Enter: expandMain, Home: () => choose(root, true) }[event.key];
    if (action) { event.preventDefault(); action(); }
  });
  box.addEventListener("click", (event) => {
    const action = DO[event.target.dataset.do];
    if (action) { action(); }
  });
  reuse.addEventListener("change", () => {
    cy.nodes("[type = 'reuse']").toggleClass("away", !reuse.checked);
    arrange(chosen);
  });
  cy.on("tap", "node", (event) => {
    const id = event.target.id();
    if (event.target.data("type") === "more") { expand(id, "up"); return; }
    choose(id);
  });
  cy.on("dbltap", "node", (event) => { choose(event.target.id()); expandMain(); });
  window.addEventListener("hashchange", () => { if (location.hash.startsWith("#graph=")) { begin(wanted()); } });
  box.lineage = { cy, expand, choose, left, chosen: () => chosen }; // for whoever wants to drive the graph from outside
  begin(wanted());
})();
