"use strict";
(() => {
  const FATES = {
    used: "", unused: ".", late: "/", unfinished: "|", failed: "x", rejected: "\\",
  };
  const touch = matchMedia("(pointer: coarse)").matches;
  const byId = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(byId(id)?.textContent ?? "null");
  const plots = read("plots-data");
  const rounds = read("rounds-data");

  // The page's colours differ between light and dark; plotly knows no CSS variables.
  const coloured = (value) => {
    const style = getComputedStyle(document.documentElement);
    const walk = (v) => {
      if (typeof v === "string" && v.startsWith("var(--")) {
        return style.getPropertyValue(v.slice(4, -1)).trim();
      }
      if (Array.isArray(v)) return v.map(walk);
      if (v && typeof v === "object") {
        return Object.fromEntries(Object.entries(v).map(([k, x]) => [k, walk(x)]));
      }
      return v;
    };
    return walk(value);
  };

  const draw = (name, traces, layout) => {
    const axis = {
      gridcolor: "var(--rule)", linecolor: "var(--rule)", zerolinecolor: "var(--rule)",
      automargin: true,
    };
    const whole = {
      font: { family: getComputedStyle(document.body).fontFamily, size: 13,
              color: "var(--text)" },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 10, r: 10, t: 10, b: 10 },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0,
                traceorder: "normal" },
      hoverlabel: { bgcolor: "var(--raised)", bordercolor: "var(--rule)",
                    font: { color: "var(--text)" } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: "var(--quiet)",
                 activecolor: "var(--text)" },
      dragmode: touch || innerWidth < 640 ? false : "zoom", // a finger scrolls
      showlegend: true,
      ...layout,
      xaxis: { ...axis, ...layout.xaxis },
      yaxis: { ...axis, ...layout.yaxis },
    };
    return Plotly.react(`plot-${name}`, coloured(traces), coloured(whole), {
      responsive: true, displaylogo: false,
      displayModeBar: innerWidth < 640 ? false : "hover", // else over the legend
      // These alone: others of plotly's send the figure to a server.
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d",
                        "resetScale2d"]],
      plotlyServerURL: "",
    });
  };

  const cells = (row, values, head = false) => {
    values.forEach((value, i) => {
      const cell = document.createElement(head || i === 0 ? "th" : "td");
      cell.scope = head ? "col" : i === 0 ? "row" : "";
      cell.textContent = value;
      row.append(cell);
    });
    return row;
  };
  const fill = (body, rows) => body.replaceChildren(
    ...rows.map((values) => cells(document.createElement("tr"), values)));
  const seconds = (value) => (value === null ? "–" : value.toFixed(3));
  const label = (worker) => `node ${worker}`;
  const marker = (fate) => ({
    color: `var(--${fate})`,
    pattern: { shape: FATES[fate], fillmode: "overlay", fgcolor: "var(--back)",
               fgopacity: 0.6, solidity: 0.3 },
    line: { color: "var(--back)", width: 1 },
  });
  const height = (id, count) => {
    byId(id).style.height = `${Math.max(16, 7 + 1.9 * count)}rem`;
  };

  const chosen = () => rounds[byId("rounds-strategy").value];

  const drawRound = () => {
    const round = chosen()[byId("rounds-round").selectedIndex];
    const workers = [...new Set(chosen().flatMap(
      (r) => r.dispatches.map((d) => d.worker)))].sort((a, b) => a - b);
    const stop = (d) => d.answered_at ?? Math.max(round.end, d.sent_at);
    const traces = Object.keys(FATES).map((fate) => {
      const of = round.dispatches.filter((d) => d.fate === fate);
      return {
        type: "bar", orientation: "h", name: fate, marker: marker(fate),
        y: of.map((d) => label(d.worker)),
        base: of.map((d) => d.sent_at),
        x: of.map((d) => stop(d) - d.sent_at),
        text: of.map((d) => `${d.stage}: ${d.partitions.join(", ")}`),
        textposition: "inside", insidetextanchor: "start", constraintext: "none",
        insidetextfont: { color: "var(--back)" }, textangle: 0,
        cliponaxis: true,
        hovertext: of.map((d) =>
          `${label(d.worker)}, stage ${d.stage}: partitions ${d.partitions.join(", ")}` +
          `<br>sent at ${seconds(d.sent_at)} s, answered at ${seconds(d.answered_at)} s` +
          `<br>${fate}`),
        hoverinfo: "text",
      };
    }).filter((trace) => trace.y.length);
    const marks = [["stage two", round.stage_two_at], ["end", round.end]];
    if (round.decoded_at !== null) {
      marks[1] = ["decoded", round.decoded_at];
      if (round.end > 1.02 * round.decoded_at) marks.push(["end", round.end]);
    }
    const shown = marks.filter(([, at]) => at !== null);
    height("plot-rounds", workers.length);
    draw("rounds", traces, {
      barmode: "overlay", bargap: 0.25,
      xaxis: { title: { text: "seconds since the round began" },
               range: [0, 1.3 * round.end || 1] },
      yaxis: { categoryorder: "array", categoryarray: workers.map(label),
               range: [workers.length - 0.5, -0.5], type: "category" },
      shapes: shown.map(([, at]) => ({
        type: "line", yref: "paper", y0: 0, y1: 1, x0: at, x1: at,
        line: { color: "var(--text)", width: 1.5, dash: "dot" },
      })),
      annotations: shown.map(([text, at], i) => ({
        text, x: at, yref: "paper", y: 0, yanchor: "bottom",
        xanchor: i ? "left" : "right", showarrow: false, bgcolor: "var(--back)",
      })),
    });
    byId("rounds-told").textContent = round.told;
    fill(byId("rounds-table").tBodies[0], round.dispatches.map((d) => [
      d.worker, d.stage, d.partitions.join(", "), seconds(d.sent_at),
      seconds(d.answered_at), d.fate]));
    byId("rounds-before").disabled = byId("rounds-round").selectedIndex === 0;
    byId("rounds-after").disabled =
      byId("rounds-round").selectedIndex === chosen().length - 1;
  };

  const drawFates = () => {
    const counts = new Map();
    for (const d of chosen().flatMap((r) => r.dispatches)) {
      const of = counts.get(d.worker) ?? {};
      of[d.fate] = (of[d.fate] ?? 0) + 1;
      counts.set(d.worker, of);
    }
    const workers = [...counts.keys()].sort((a, b) => a - b);
    const fates = Object.keys(FATES).filter(
      (fate) => workers.some((w) => counts.get(w)[fate]));
    height("plot-fates", workers.length);
    draw("fates", fates.map((fate) => ({
      type: "bar", orientation: "h", name: fate, marker: marker(fate),
      y: workers.map(label), x: workers.map((w) => counts.get(w)[fate] ?? 0),
    })), {
      barmode: "stack", bargap: 0.25,
      xaxis: { title: { text: "messages" }, tickformat: "d", nticks: 8 },
      yaxis: { type: "category", autorange: "reversed" },
    });
    byId("fates-table").tHead.rows[0].replaceChildren();
    cells(byId("fates-table").tHead.rows[0], ["node", ...fates], true);
    fill(byId("fates-table").tBodies[0],
         workers.map((w) => [w, ...fates.map((f) => counts.get(w)[f] ?? 0)]));
  };

  const offer = (select, texts) => select.replaceChildren(
    ...texts.map((text) => new Option(text)));
  const chooseStrategy = () => {
    offer(byId("rounds-round"), chosen().map((r) => String(r.server_round)));
    drawRound();
    drawFates();
  };
  const step = (by) => {
    byId("rounds-round").selectedIndex += by;
    drawRound();
  };

  const drawAll = () => {
    for (const [name, plot] of Object.entries(plots)) {
      draw(name, plot.traces, plot.layout);
    }
    if (rounds) {
      drawRound();
      drawFates();
    }
  };

  if (rounds) {
    offer(byId("rounds-strategy"),
          Object.keys(rounds).filter((name) => rounds[name].length));
    byId("rounds-strategy").addEventListener("change", chooseStrategy);
    byId("rounds-round").addEventListener("change", drawRound);
    byId("rounds-before").addEventListener("click", () => step(-1));
    byId("rounds-after").addEventListener("click", () => step(1));
    offer(byId("rounds-round"), chosen().map((r) => String(r.server_round)));
  }
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
})();
