"use strict";
// The page is whole without this script: it adds sorting, searching, the map's colours and texts, and a theme.
(function () {
  const $ = (id) => document.getElementById(id);
  document.querySelectorAll(".tools").forEach((tools) => { tools.hidden = false; });

  const theme = $("theme");
  const dark = () => document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const label = () => { theme.setAttribute("aria-pressed", String(dark())); };
  theme.hidden = false;
  theme.addEventListener("click", () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; label(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();

  const table = $("label-table");
  if (table) {
    const body = table.tBodies[0];
    const rows = Array.from(body.rows);
    const heads = Array.from(table.tHead.rows[0].cells);
    const value = (row, column, text) => {
      const cell = row.cells[column];
      return text ? cell.textContent.trim() : Number(cell.dataset.v);
    };
    heads.forEach((head, column) => {
      const text = head.dataset.kind === "text";
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      if (!head.hasAttribute("aria-sort")) head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const up = now === "none" ? text : now === "descending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        rows.sort((a, b) => {
          const x = value(a, column, text), y = value(b, column, text);
          const order = text ? x.localeCompare(y) : x - y;
          return up ? order : -order;
        });
        body.append(...rows);
      });
    });
    const find = $("find");
    const search = () => {
      const words = find.value.trim().toLowerCase();
      let n = 0;
      rows.forEach((row) => {
        row.hidden = !row.cells[0].textContent.toLowerCase().includes(words);
        if (!row.hidden) n += 1;
      });
      $("found").textContent = words ? n + " of " + rows.length + " labels" : "";
    };
    find.addEventListener("input", search);
  }

  const data = $("map-data");
  if (data) {
    const map = JSON.parse(data.textContent);
    const figure = $("map-figure"), chart = $("map-chart"), detail = $("map-detail"), only = $("only");
    const marks = Array.from(chart.querySelectorAll("circle, path"));
    let chosen = -1;
    detail.hidden = false;
    document.querySelectorAll("input[name=colour]").forEach((radio) => {
      radio.addEventListener("change", () => { figure.dataset.colour = radio.value; });
    });
    only.addEventListener("change", () => {
      const wanted = only.value === "" ? null : Number(only.value);
      marks.forEach((mark, i) => { mark.classList.toggle("off", wanted !== null && map.points[i][3] !== wanted); });
    });
    const part = (tag, text) => {
      const node = document.createElement(tag);
      node.dir = "auto";
      node.textContent = text;
      return node;
    };
    const show = (i) => {
      if (i === chosen || i < 0) return;
      if (chosen >= 0) marks[chosen].classList.remove("on");
      chosen = i;
      marks[i].classList.add("on");
      const [, , text, given, said, score, decision] = map.points[i];
      const surrogate = decision === "deferred" ? "deferred" : "handled";
      detail.replaceChildren(part("bdi", text || "(no text kept)"), document.createElement("br"), "teacher ", part("b", map.names[given]));
      if (said !== given) detail.append(" \u00b7 surrogate ", part("b", map.names[said]));
      detail.append(" \u00b7 " + surrogate + (score === null ? " by a rule" : ", score " + score.toFixed(2)));
    };
    const nearest = (x, y, keep) => {
      let best = -1, least = Infinity;
      map.points.forEach(([px, py], i) => {
        if (marks[i].classList.contains("off") || !keep(px, py, i)) return;
        const far = (px - x) ** 2 + (py - y) ** 2;
        if (far < least) { least = far; best = i; }
      });
      return [best, least];
    };
    const point = (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse());
      const [i, far] = nearest(at.x, at.y, () => true);
      if (far < 900) show(i);
    };
    chart.addEventListener("pointermove", point);
    chart.addEventListener("pointerdown", point);
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    figure.addEventListener("keydown", (event) => {
      const way = ways[event.key];
      if (!way) return;
      event.preventDefault();
      if (chosen < 0) { show(nearest(450, 280, () => true)[0]); return; }
      const [x, y] = map.points[chosen];
      const ahead = (px, py, i) => {
        const dx = px - x, dy = py - y, along = dx * way[0] + dy * way[1];
        return i !== chosen && along > 0 && along >= Math.abs(dx * way[1] + dy * way[0]);
      };
      show(nearest(x, y, ahead)[0]);
    });
  }

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = Array.from(document.querySelectorAll("details:not([open])"));
    closed.forEach((d) => { d.open = true; });
  });
  addEventListener("afterprint", () => { closed.forEach((d) => { d.open = false; }); });
})();
