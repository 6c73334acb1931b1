"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  all("[data-script]").forEach((part) => { part.hidden = false; });

  // The leaderboard: a click on a heading sorts by it, rows without a number stay last.
  all("table.board").forEach((table) => {
    const body = table.tBodies[0];
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = head.querySelector("button");
      if (!button) return;
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const value = (row) => parseFloat(row.cells[column].dataset.v);
        const order = (a, b) => {
          const x = value(a), y = value(b);
          if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
          return down ? y - x : x - y;
        };
        body.append(...all("tr", body).sort(order));
      });
    });
  });

  // Heatmaps: one of the pairs of axes at a time.
  all("select.pairs").forEach((select) => {
    const show = () => all(".heatmap").forEach((map, n) => { map.hidden = n !== select.selectedIndex; });
    select.addEventListener("change", show);
    show();
  });

  // Loss curves: boxes choose values, a list chooses what the colours stand for.
  const panel = document.querySelector(".filters");
  const lines = all(".curves .line");
  if (panel) {
    const sets = all("fieldset", panel);
    const boxes = sets.map((set) => all("input", set));
    const paint = panel.querySelector("select.paint");
    const count = panel.querySelector(".shown");
    const levels = lines.map((line) => line.dataset.levels.split(" ").map(Number));
    const choose = () => {
      const shown = new Set();
      lines.forEach((line, n) => {
        const on = boxes.every((set, axis) => levels[n][axis] < 0 || set[levels[n][axis]].checked);
        line.classList.toggle("off", !on);
        if (on) shown.add(line.dataset.cell);
      });
      count.textContent = `${shown.size} of ${count.dataset.cells} cells shown`;
    };
    const colour = () => {
      const axis = paint ? paint.selectedIndex : 0;
      sets.forEach((set, n) => set.classList.toggle("painted", n === axis));
      if (!boxes[axis]) return;
      lines.forEach((line, n) => {
        const box = boxes[axis][levels[n][axis]];
        if (box) line.style.setProperty("--c", box.dataset.colour);
      });
    };
    panel.addEventListener("change", (event) => (event.target === paint ? colour() : choose()));
    all("button", panel).forEach((button) => button.addEventListener("click", () => {
      const set = button.closest("fieldset");
      const boxes = all("input", set);
      const on = !boxes.every((box) => box.checked);
      boxes.forEach((box) => { box.checked = on; });
      choose();
    }));
    colour();
    choose();
  }

  // The line nearest to the pointer stands out in its figure, and in the other one, and is named below.
  const places = (line) => {
    line.places ??= (line.querySelector("path").getAttribute("d").match(/-?[\d.]+,-?[\d.]+/g) ?? [])
      .map((place) => place.split(",").map(Number));
    return line.places;
  };
  const distance = (x, y, points) => {
    let least = Infinity;
    points.forEach(([x1, y1], n) => {
      const [x2, y2] = points[n + 1] ?? [x1, y1];
      const length = (x2 - x1) ** 2 + (y2 - y1) ** 2;
      const t = length ? Math.min(1, Math.max(0, ((x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)) / length)) : 0;
      least = Math.min(least, Math.hypot(x - x1 - t * (x2 - x1), y - y1 - t * (y2 - y1)));
    });
    return least;
  };
  all(".curves, .parallel").forEach((figure) => {
    const readout = figure.closest(".traced").querySelector(".readout");
    const own = all(".line", figure);
    const clear = () => {
      all(".hot", figure.closest(".traced")).forEach((line) => line.classList.remove("hot"));
      readout.textContent = readout.dataset.hint;
    };
    const point = (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(figure.getScreenCTM().inverse());
      let near = null, least = 24;
      own.forEach((line) => {
        const far = line.classList.contains("off") ? Infinity : distance(at.x, at.y, places(line));
        if (far < least) { near = line; least = far; }
      });
      clear();
      if (!near) return;
      const same = near.dataset.cell === undefined ? [near] : lines.filter((line) => line.dataset.cell === near.dataset.cell);
      same.forEach((line) => line.classList.add("hot"));
      readout.textContent = near.querySelector("title").textContent;
    };
    figure.addEventListener("pointermove", point);
    figure.addEventListener("pointerdown", point);
    figure.addEventListener("pointerleave", clear);
  });
})();
