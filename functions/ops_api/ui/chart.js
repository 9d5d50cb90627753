/** An enlarged chart by uPlot, loaded by the first view that shows one. */
import UPlot from "uplot";
import { count, html, theme, useEffect, useRef, useState, useStore, utc } from "#kit";

const HEIGHT = 200;

/** Loads uPlot's style sheet, once. */
let sheet;
function loadSheet() {
  sheet ??= new Promise((onload, onerror) => {
    const href = import.meta.resolve("#vendor/uplot.css");
    document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href, onload, onerror }));
  });
  return sheet;
}

/** Returns a custom property's colour as a canvas knows it: light-dark() is resolved. */
function colourOf(element, name) {
  const probe = document.createElement("i");
  probe.style.color = `var(${name})`;
  element.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

export function clock(seconds, inUtc) {
  const date = new Date(seconds * 1000);
  const [h, m] = inUtc ? [date.getUTCHours(), date.getUTCMinutes()] : [date.getHours(), date.getMinutes()];
  return `${String(h).padStart(2, "0")}:${String(m).padStart(2, "0")}`;
}

function options(element, inUtc) {
  const axis = {
    stroke: colourOf(element, "--muted"), grid: { stroke: colourOf(element, "--line"), width: 1 },
    ticks: { show: false }, font: "12px system-ui",
  };
  const bars = {
    fill: colourOf(element, "--wait"), width: 0, paths: UPlot.paths.bars({ size: [0.72, 40] }), points: { show: false },
  };
  return {
    width: element.clientWidth, height: HEIGHT, legend: { show: false }, cursor: { y: false },
    tzDate: (seconds) => (inUtc ? UPlot.tzDate(new Date(seconds * 1000), "Etc/UTC") : new Date(seconds * 1000)),
    scales: {
      x: { range: (_, low, high) => [low - 30, high + 30] },
      y: { range: (_, low, high) => [0, Math.max(4, high * 1.1)] },
    },
    axes: [
      { ...axis, size: 28, values: (_, ticks) => ticks.map((one) => clock(one, inUtc)) },
      { ...axis, size: 56, values: (_, ticks) => ticks.map((n) => (n % 1 ? "" : count(n))) },
    ],
    series: [{}, bars],
  };
}

/** Bars a minute: `data` is [instants in seconds, counts]. `label` says that a table has the same. */
export function Chart({ data, label }) {
  const box = useRef();
  const plot = useRef();
  const [isStyled, setStyled] = useState(false);
  const chosen = useStore(theme);
  const inUtc = useStore(utc) === "1";
  useEffect(() => { loadSheet().finally(() => setStyled(true)); }, []);
  useEffect(() => {
    if (!isStyled) return undefined;
    plot.current = new UPlot(options(box.current, inUtc), data, box.current);
    const fit = () => plot.current.setSize({ width: box.current.clientWidth, height: HEIGHT });
    addEventListener("resize", fit);
    return () => { removeEventListener("resize", fit); plot.current.destroy(); plot.current = null; };
  }, [isStyled, chosen, inUtc]);
  useEffect(() => plot.current?.setData(data), [data]);
  return html`<div class="chart" role="img" aria-label=${label} ref=${box}></div>`;
}
