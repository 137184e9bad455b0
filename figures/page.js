/* Draws the numbers in #landscape: a surface in three dimensions, and slices. No request leaves the page. */
"use strict";
(() => {
  const holder = document.getElementById("landscape");
  if (!holder) { return; }
  const data = JSON.parse(holder.textContent);
  const surface = document.getElementById("surface-plot"), slices = document.getElementById("slices-plot");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const config = {displaylogo: false, responsive: true, scrollZoom: false,
                  modeBarButtonsToRemove: ["orbitRotation", "tableRotation", "resetCameraLastSave3d", "lasso2d", "select2d"]};

  function chosen(name) {
    const found = document.querySelector(`[name="${name}"]:checked, select[name="${name}"]`);
    return found.value;
  }

  function plain(text) {          // plotly takes some markup in texts
    return text.replace(/&/g, "&amp;").replace(/</g, "&lt;");
  }

  function ink(color) {           // black lines would vanish on a dark page
    return color === "#000000" && dark.matches ? "#e8e8e8" : color;
  }

  function colors() {
    const style = getComputedStyle(document.documentElement);
    return {text: style.getPropertyValue("--text").trim(), line: style.getPropertyValue("--line").trim()};
  }

  function layout() {
    const {text} = colors();
    return {paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: {color: text, family: "system-ui, sans-serif"},
            margin: {l: 0, r: 0, t: 10, b: 0}, uirevision: "kept", modebar: {bgcolor: "rgba(0,0,0,0)", color: text, activecolor: text},
            hoverlabel: {font: {family: "system-ui, sans-serif"}}};
  }

  function ticks() {              // of a logarithmic scale: 1, 2 and 5 of each decade
    const [low, high] = data.range, values = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
      for (const digit of [1, 2, 5]) { values.push(digit * 10 ** power); }
    }
    const seen = values.filter((value) => value >= low && value <= high);
    return {tickvals: seen, ticktext: seen.map((value) => String(+value.toPrecision(2)))};
  }

  function scaled(value) {
    return data.logarithmic && value !== null ? Math.log10(value) : value;
  }

  function checkpoints(plane, group, own) {
    const marks = plane.marks.filter((mark) => mark.own === own && mark.loss[group] !== null);
    return {type: "scatter3d", mode: own ? "lines+markers" : "markers", x: marks.map((mark) => mark.alpha),
            y: marks.map((mark) => mark.beta), z: marks.map((mark) => mark.loss[group]), text: marks.map((mark) => plain(mark.name)),
            hovertemplate: "%{text}: %{z:.4g} nats<extra></extra>", showlegend: false,
            line: {color: "#ffffff", width: 3},
            marker: {size: 5, color: "#D55E00", symbol: own ? "circle" : "diamond", line: {color: "#ffffff", width: 1}}};
  }

  function drawSurface() {
    const plane = data.planes[chosen("plane")], group = chosen("group"), loss = plane.loss[group];
    const {line} = colors(), narrow = surface.clientWidth < 560;
    const axis = {gridcolor: line, zerolinecolor: line, backgroundcolor: "rgba(0,0,0,0)", showspikes: false};
    const sheet = {
      type: "surface", x: plane.alpha, y: plane.beta, z: loss, surfacecolor: loss.map((row) => row.map(scaled)), colorscale: "Cividis",
      cmin: scaled(data.range[0]), cmax: scaled(data.range[1]), connectgaps: false,
      contours: {z: {show: false}}, lighting: {ambient: 0.75, diffuse: 0.5, specular: 0.05},
      hovertemplate: "α %{x:.3g}<br>β %{y:.3g}<br>loss %{z:.4g} nats<extra></extra>",
      colorbar: Object.assign({title: {text: narrow ? "" : "loss [nats]"}, thickness: narrow ? 8 : 14, len: 0.7, x: 1, outlinewidth: 0},
                              data.logarithmic ? Object.assign(ticks(), {tickvals: ticks().tickvals.map(Math.log10)}) : {}),
    };
    const bounds = data.range.map((value) => (data.logarithmic ? Math.log10(value) : value));
    const scene = {
      xaxis: Object.assign({title: {text: "α"}}, axis), yaxis: Object.assign({title: {text: "β"}}, axis),
      zaxis: Object.assign({title: {text: "loss"}, type: data.logarithmic ? "log" : "linear", range: bounds}, axis, data.logarithmic ? ticks() : {}),
      aspectmode: "manual", aspectratio: {x: 1, y: 1, z: 0.75}, camera: {eye: {x: 1.2, y: -1.2, z: 0.85}},
      uirevision: "kept", dragmode: "turntable",
    };
    Plotly.react(surface, [sheet, checkpoints(plane, group, true), checkpoints(plane, group, false)], Object.assign(layout(), {scene}), config);
  }

  function drawSlices() {
    const slice = data.slices[chosen("slice")], {line} = colors(), traces = [];
    const seen = slice.lines.flatMap((one) => (one.shown ? one.y.filter((value) => value !== null) : []));
    for (const one of slice.lines) {
      traces.push({type: "scatter", mode: "lines", name: plain(one.name), legendgroup: one.name, x: one.x, y: one.y, connectgaps: false,
                   line: {color: ink(one.color), dash: one.dash, width: 2}, visible: one.shown ? true : "legendonly",
                   hovertemplate: `${slice.axis} %{x:.3g}: %{y:.4g} nats<extra>${plain(one.name)}</extra>`});
      if (one.predicted) {
        traces.push({type: "scatter", mode: "lines", legendgroup: one.name, showlegend: false, x: one.x, y: one.predicted,
                     line: {color: ink(one.color), dash: "dot", width: 1}, opacity: 0.8, hoverinfo: "skip",
                     visible: one.shown ? true : "legendonly"});
      }
    }
    const low = Math.min(...seen), high = Math.max(...seen), room = 0.05 * (high - low) || 0.1, narrow = slices.clientWidth < 560;
    const axis = {gridcolor: line, zerolinecolor: line, automargin: true};
    Plotly.react(slices, traces, Object.assign(layout(), {
      xaxis: Object.assign({title: {text: plain(`${slice.axis} [${slice.units}]`)}}, axis),
      yaxis: Object.assign({title: {text: "loss [nats]"}, range: [low - room, high + room]}, axis),
      legend: {orientation: "h", yanchor: "top", y: narrow ? -0.28 : -0.2, x: 0}, margin: {l: 8, r: 8, t: 10, b: 8}, uirevision: slice.label,
    }), config);
  }

  function draw() { drawSurface(); drawSlices(); }

  document.addEventListener("change", (event) => (event.target.name === "slice" ? drawSlices() : drawSurface()));
  dark.addEventListener("change", draw);
  draw();
})();
