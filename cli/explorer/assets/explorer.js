// What runs in the browser: following its theme, waiting for the end of a drag, writing the tables (as text only).
window.dash_clientside = Object.assign({}, window.dash_clientside, {
  explorer: {
    theme: function () {
      const dark = window.matchMedia("(prefers-color-scheme: dark)");
      dark.onchange = (event) => window.dash_clientside.set_props("dark", { data: event.matches });
      return dark.matches;
    },

    drag: function (value, row) {
      const known = window.dash_clientside.explorer;
      const arrived = Number(value) === row, answered = row !== known.row;
      known.row = row;
      // An answer to where the slider was a moment ago must not end the wait for where it has been dragged to since.
      if (!(arrived && answered)) window.clearTimeout(known.dragging);
      if (value === undefined || arrived) return;
      known.dragging = window.setTimeout(
        () => window.dash_clientside.set_props("dragged", { data: Number(value) }), 40);
    },

    table: function (listed, id) {
      const place = document.getElementById(id);
      if (!listed) {
        place.replaceChildren();
        return;
      }
      const row = (cells, tag) => {
        const line = document.createElement("tr");
        cells.forEach((text, column) => {
          const cell = document.createElement(tag);
          cell.textContent = text;
          if (tag === "th") cell.scope = "col";
          if (listed.text.includes(column)) cell.className = "text";
          line.append(cell);
        });
        return line;
      };
      const table = document.createElement("table");
      const head = table.createTHead();
      head.append(row(listed.columns, "th"));
      const body = table.createTBody();
      body.append(...listed.rows.map((cells) => row(cells, "td")));
      place.replaceChildren(table);
    },
  },
});

// A server that has ended is told in the page's own line, not on the console alone.
const answered = window.fetch;
window.fetch = (...request) =>
  answered(...request).catch((error) => {
    window.dash_clientside.set_props("message", { children: "cli explore is no longer running: start it again" });
    window.dash_clientside.set_props("message", { hidden: false });
    throw error;
  });
