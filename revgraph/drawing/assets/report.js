"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const slider = byId("step");
const plan = byId("plan");
const cursors = [...document.querySelectorAll("#time svg")].map((svg) => {
  const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  const box = svg.viewBox.baseVal;
  for (const [key, value] of Object.entries({ y: 50, width: data.axis.step, height: box.height - 50 })) {
    bar.setAttribute(key, value);
  }
  bar.setAttribute("class", "cursor");
  svg.append(bar);
  return bar;
});
// Of a plan with repeated blocks there are two drawings: blocks drawn once, and all of them.
const drawings = [...plan.children].map((holder) => ({
  holder,
  nodes: new Map([...holder.querySelectorAll("g.node[data-node]")].map((each) => [each.dataset.node, each])),
  tags: new Map([...holder.querySelectorAll("g.node[data-value]")].map((each) => [each.dataset.value, each])),
}));
let drawing = drawings[0];

// What lies on the tape after each step: stored in the forward, or rebuilt in the backward.
const tapes = [];
const tape = new Map();
for (const step of data.steps) {
  for (const name of step.stores) tape.set(name, "stored");
  if (step.stage) for (const name of step.makes) if (!tape.has(name)) tape.set(name, "rebuilt");
  if (step.stage || step.action === "free") for (const name of step.frees) tape.delete(name);
  tapes.push(new Map(tape));
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (count >= 1024 && place < units.length - 1) { count /= 1024; place += 1; }
  return `${place ? count.toFixed(1) : count} ${units[place]}`;
}

function drawn(name) {
  return drawing.nodes.get(name) ?? drawing.nodes.get(data.shown[name]);
}

function mark(group, name) {
  for (const before of plan.querySelectorAll(`g.${name}`)) before.classList.remove(name);
  if (group) group.classList.add(name);
}

function reveal(element, pane) {
  if (!element) return;
  const inside = element.getBoundingClientRect();
  const frame = pane.getBoundingClientRect();
  if (inside.top < frame.top || inside.bottom > frame.bottom) {
    pane.scrollTop += inside.top - frame.top - (frame.height - inside.height) / 2;
  }
  if (inside.left < frame.left || inside.right > frame.right) {
    pane.scrollLeft += inside.left - frame.left - (frame.width - inside.width) / 2;
  }
}

function show(index) {
  const place = Math.max(0, Math.min(data.steps.length - 1, index));
  const step = data.steps[place];
  slider.value = place;
  slider.setAttribute("aria-valuetext", `step ${place + 1}: ${step.what}`);
  byId("count").textContent = `${place + 1} / ${data.steps.length}`;
  byId("what").textContent = step.what;
  byId("why").textContent = step.why;
  byId("live").textContent = `${bytes(step.live)} live after it, ${bytes(step.peak)} at most while it runs`;
  byId("parts").textContent = Object.entries(step.parts).filter((part) => part[1] > 0)
    .map((part) => `${part[0]} ${bytes(part[1])}`).join(", ");
  for (const item of document.querySelectorAll("#algorithm li")) {
    item.classList.toggle("runs", step.lines.includes(Number(item.value)));
  }
  const held = byId("tape");
  held.replaceChildren(...[...tapes[place]].map(([name, kind]) => {
    const chip = document.createElement("span");
    chip.textContent = name;
    chip.className = kind;
    chip.title = kind;
    return chip;
  }));
  if (!tapes[place].size) held.textContent = "nothing";
  for (const [name, group] of drawing.tags) group.classList.toggle("gone", !tapes[place].has(name));
  for (const bar of cursors) bar.setAttribute("x", data.axis.left + place * data.axis.step);
  const group = drawn(step.node);
  mark(group, "here");
  reveal(group, plan);
  reveal(cursors[0], byId("time"));
}

function choose(name) {
  const text = data.explain[name];
  byId("about").textContent = text ?? `There is no node ${name}.`;
  if (!text) return;
  mark(drawn(name), "chosen");
  reveal(drawn(name), plan);
}

function unfold(whole) {
  drawing.holder.hidden = true;
  drawing = drawings[whole ? drawings.length - 1 : 0];
  drawing.holder.hidden = false;
  byId("unfold").setAttribute("aria-pressed", String(whole));
  show(Number(slider.value));
}

if (drawings.length > 1) {
  byId("unfold").hidden = false;
  byId("unfold").addEventListener("click", () => unfold(drawing === drawings[0]));
}
slider.addEventListener("input", () => show(Number(slider.value)));
for (const [id, move] of [["first", () => 0], ["back", () => Number(slider.value) - 1],
  ["next", () => Number(slider.value) + 1], ["last", () => data.steps.length - 1],
  ["peak", () => data.peak]]) {
  byId(id).addEventListener("click", () => show(move()));
}
byId("search").addEventListener("change", (event) => choose(event.target.value));
plan.addEventListener("click", (event) => {
  const group = event.target.closest("g.node[data-node]");
  if (group) choose(group.dataset.node);
});
byId("time").addEventListener("click", (event) => {
  const sign = event.target.closest("[data-step]");
  const svg = event.target.closest("svg");
  if (sign && sign.dataset.step !== "") {
    show(Number(sign.dataset.step));
    choose(sign.dataset.node);
  } else if (svg) {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    show(Math.floor((x - data.axis.left) / data.axis.step));
  }
});
const keys = { ArrowRight: 1, ArrowLeft: -1, PageDown: 10, PageUp: -10 };
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input[type=search]") || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key in keys) show(Number(slider.value) + keys[event.key]);
  else if (event.key === "Home") show(0);
  else if (event.key === "End") show(data.steps.length - 1);
  else return;
  event.preventDefault();
});
show(0);
