"use strict";
const $ = id => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

// --- theme: auto, light, dark; stored if the browser allows it ---------------------------------------------
{
  const names = ["auto", "light", "dark"], schemes = { auto: "light dark", light: "light", dark: "dark" };
  const remember = value => { try { return value ? localStorage.setItem("theme", value) : localStorage.getItem("theme"); } catch { return null; } };
  let theme = names.includes(remember()) ? remember() : "auto";
  const show = () => {
    document.documentElement.style.colorScheme = schemes[theme];
    $("theme").textContent = `Theme: ${theme}`;
  };
  $("theme").hidden = false;
  $("theme").addEventListener("click", () => {
    theme = names[(names.indexOf(theme) + 1) % names.length];
    remember(theme);
    show();
  });
  show();
}

// --- sorting: the input row stays on top, entries without a value at the bottom -----------------------------------
for (const table of document.querySelectorAll("table.numbers")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], original = [...body.rows];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const next = { none: "descending", descending: "ascending", ascending: "none" };
    const order = next[head.getAttribute("aria-sort") || "none"];
    heads.forEach(other => other.removeAttribute("aria-sort"));
    let rows = original;
    if (order !== "none") {
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const value = row => row.cells[column].dataset.value;
      rows = original.filter(row => !row.classList.contains("reference")).sort((a, b) => {
        const x = value(a), y = value(b);
        if (x === undefined && y === undefined) return sign * a.cells[column].textContent.localeCompare(b.cells[column].textContent);
        if (x === undefined || y === undefined) return x === undefined ? 1 : -1;
        return sign * (x - y);
      });
      rows = [...original.filter(row => row.classList.contains("reference")), ...rows];
    }
    body.append(...rows);
  }));
}

// --- filters ------------------------------------------------------------------------------------------------------
const off = { method: new Set(), block: new Set(), column: new Set() };
let afterFilter = () => {};
if ($("filter")) {
  $("filter").hidden = false;
  const update = () => {
    for (const fieldset of $("filter").querySelectorAll("fieldset")) {
      const boxes = [...fieldset.querySelectorAll("input")];
      off[fieldset.dataset.kind] = new Set(boxes.filter(box => !box.checked).map(box => box.value));
    }
    for (const element of document.querySelectorAll("[data-method], [data-block], [data-column]")) {
      element.hidden = Object.keys(off).some(kind => off[kind].has(element.dataset[kind]));
    }
    afterFilter();
  };
  $("filter").addEventListener("change", update);
  $("filter").addEventListener("click", event => {
    const all = event.target.dataset.all;
    if (all === undefined) return;
    event.target.closest("fieldset").querySelectorAll("input").forEach(box => { box.checked = Boolean(all); });
    update();
  });
}

// --- images: one gallery at a time, made from the data at the end of the page --------------------------------------
if ($("viewer")) {
  const { images, blocks } = JSON.parse($("data").textContent);
  const viewer = $("viewer"), gallery = viewer.querySelector(".gallery"), stage = viewer.querySelector(".stage");
  const state = { block: 0, column: "", image: 0, left: "", right: "", zoom: 1, x: 50, y: 50 };
  const panel = () => blocks[state.block].panels.find(p => p.column === state.column);
  const source = cell => cell[0] === null ? "" : images[cell[0]];

  const radios = (fieldset, name, values, chosen, choose) => {
    fieldset.querySelectorAll("label").forEach(label => label.remove());
    for (const [value, text] of values) {
      const input = make("input", { type: "radio", name, value, checked: value === chosen });
      input.addEventListener("change", () => choose(value));
      fieldset.append(make("label", { className: "chip" }, input, text));
    }
    fieldset.hidden = values.length < 2;
  };
  const options = (select, values, chosen) => {
    select.replaceChildren(...values.map(([value, text]) => make("option", { value, textContent: text, selected: value === chosen })));
  };

  const place = () => {
    viewer.style.setProperty("--zoom", state.zoom);
    viewer.style.setProperty("--x", `${state.x}%`);
    viewer.style.setProperty("--y", `${state.y}%`);
    $("zoom").value = state.zoom;
  };
  const zoom = value => { state.zoom = Math.min(8, Math.max(1, value)); place(); };
  const move = (x, y) => { state.x = Math.min(100, Math.max(0, x)); state.y = Math.min(100, Math.max(0, y)); place(); };

  const cut = () => {
    const value = $("cut").value;
    stage.style.setProperty("--cut", `${value}%`);
    $("cut").setAttribute("aria-valuetext", `${value} % ${state.left}, ${100 - value} % ${state.right}`);
  };

  const compare = () => {
    const shown = panel();
    const cell = head => shown.cells[shown.heads.indexOf(head)][state.image];
    for (const [side, head] of [["before", state.left], ["after", state.right]]) {
      const image = stage.querySelector(`.${side} img`);
      image.alt = `${head}, image ${shown.ids[state.image]}`;
      image.hidden = cell(head)[0] === null;
      if (!image.hidden) image.src = source(cell(head));
    }
    const scored = head => `${head}${cell(head)[1] ? `: ${cell(head)[1]}` : ""}`;
    $("scores").textContent = `left ${scored(state.left)}; right ${scored(state.right)}`;
    gallery.querySelectorAll(".tile").forEach(tile => {
      tile.classList.toggle("chosen", tile.dataset.head === state.right && Number(tile.dataset.image) === state.image);
    });
    cut();
  };

  const choices = () => {
    const shown = panel(), heads = shown.heads.filter(head => !off.method.has(head));
    if (!shown.heads.includes(state.left)) state.left = shown.heads[0];
    if (!heads.includes(state.right)) state.right = heads.at(-1) ?? shown.heads[0];
    state.image = Math.min(state.image, shown.ids.length - 1);
    options($("pick-image"), shown.ids.map((id, i) => [String(i), shown.ranks[i] ? `${id} (${shown.ranks[i]})` : id]), String(state.image));
    options($("pick-left"), shown.heads.map(head => [head, head]), state.left);
    options($("pick-right"), shown.heads.map(head => [head, head]), state.right);
    compare();
  };

  const draw = () => {
    const shown = panel();
    gallery.replaceChildren(...shown.heads.map((head, h) => {
      const section = make("section", {}, make("h4", { textContent: head }));
      section.dataset.method = head;
      section.hidden = off.method.has(head);
      shown.cells[h].forEach((cell, i) => {
        const tile = make("div", { className: "tile" }, cell[0] === null ? cell[1] : make("img", {
          src: source(cell), alt: `${head}, image ${shown.ids[i]}${cell[1] ? `, ${cell[1]}` : ""}`,
        }));
        Object.assign(tile.dataset, { head, image: i });
        section.append(tile, make("div", { className: "foot", textContent: cell[0] === null ? "" : cell[1] || (h === 0 ? shown.ranks[i] : "") }));
      });
      return section;
    }));
    $("rule").textContent = shown.rule ? `Images are sorted from the worst to the best ${shown.rule}.` : "";
    choices();
  };

  const pick = () => {
    const open = blocks.map((block, i) => [i, block]).filter(([, block]) => !off.block.has(block.title));
    if (open.length && !open.some(([i]) => i === state.block)) state.block = open[0][0];
    const block = blocks[state.block];
    const columns = block.panels.map(p => p.column).filter(column => !off.column.has(column));
    if (!columns.includes(state.column)) state.column = columns.includes(block.open) ? block.open : columns[0] ?? block.open;
    radios($("pick-block"), "block", open.map(([i, b]) => [i, b.title]), state.block, value => { state.block = value; pick(); focus("block"); });
    radios($("pick-column"), "column", columns.map(c => [c, c]), state.column, value => { state.column = value; pick(); focus("column"); });
    draw();
  };
  const focus = name => viewer.querySelector(`input[name="${name}"]:checked`)?.focus();

  $("pick-image").addEventListener("change", event => { state.image = Number(event.target.value); compare(); });
  $("pick-left").addEventListener("change", event => { state.left = event.target.value; compare(); });
  $("pick-right").addEventListener("change", event => { state.right = event.target.value; compare(); });
  $("cut").addEventListener("input", cut);
  $("zoom").addEventListener("input", event => zoom(Number(event.target.value)));
  $("whole").addEventListener("click", () => { move(50, 50); zoom(1); });
  $("smooth").addEventListener("change", event => viewer.classList.toggle("smooth", event.target.checked));
  const follow = event => {
    const tile = event.target.closest(".tile, .stage");
    if (!tile || state.zoom === 1) return;
    const box = tile.getBoundingClientRect();
    move(100 * (event.clientX - box.left) / box.width, 100 * (event.clientY - box.top) / box.height);
  };
  gallery.addEventListener("pointermove", follow);
  gallery.addEventListener("click", event => {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    Object.assign(state, { right: tile.dataset.head, image: Number(tile.dataset.image) });
    follow(event);
    choices();
  });
  gallery.addEventListener("dblclick", event => { zoom(state.zoom > 1 ? 1 : 4); follow(event); });
  gallery.addEventListener("keydown", event => {
    const step = 20 / state.zoom;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key === "+" || event.key === "=") zoom(state.zoom + 1);
    else if (event.key === "-") zoom(state.zoom - 1);
    else if (moves[event.key] && state.zoom > 1) move(state.x + moves[event.key][0], state.y + moves[event.key][1]);
    else return;
    event.preventDefault();
  });
  afterFilter = pick;
  viewer.hidden = false;
  pick();
}

// --- print: open all details ----------------------------------------------------------------------------------
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(element => { element.open = true; }));
