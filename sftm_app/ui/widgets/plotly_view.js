// The browser half of PlotlyView: runs once for each widget, as the body of function(element, trigger, props, watch).
const root = element.querySelector('.sf-plot');
const stage = root.querySelector('.sf-plot-stage');
const empty = root.querySelector('.sf-plot-empty');
const spoken = root.querySelector('.sf-visually-hidden');
// Texts are never colours: a task called "var(--x)" stays a text.
const TEXT_KEYS = new Set(['text', 'customdata', 'ticktext', 'name', 'meta', 'hovertemplate', 'hovertext', 'bdata']);
const CONFIG = {displayModeBar: false, displaylogo: false, responsive: false, doubleClick: 'reset', showTips: false};
let dark = isDark();
let listening = false;
let busy = false;
let again = false;
let waiting = false;     // a figure came while the tab was hidden
let cursor = null;
let outline = null;      // the cell clicked here, framed at once; the server need not send the figure again
let outlinedIn = null;   // the value that the frame belongs to

function isDark() { return document.body.classList.contains('dark'); }

function figure() {
  const value = props.value;
  if (!value) return null;
  return typeof value === 'string' ? JSON.parse(value) : JSON.parse(JSON.stringify(value));
}

// Replace every "var(--name)" by what it stands for here and now: plotly cannot read CSS variables.
function resolve(node, styles) {
  if (typeof node === 'string') {
    return node.startsWith('var(--') ? styles.getPropertyValue(node.slice(4, -1)).trim() || '#888888' : node;
  }
  if (Array.isArray(node)) {
    // Lists of numbers are long and hold no colours; a colour scale's [0.25, "var(...)"] ends with one.
    return typeof node[node.length - 1] === 'number' ? node : node.map((item) => resolve(item, styles));
  }
  if (node && typeof node === 'object') {
    const out = {};
    for (const [key, item] of Object.entries(node)) out[key] = TEXT_KEYS.has(key) ? item : resolve(item, styles);
    return out;
  }
  return node;
}

function showEmpty() {
  stage.hidden = true;
  root.querySelector('.sf-plot-tools').hidden = true;
  empty.hidden = false;
  empty.style.minHeight = (props.min_plot_height || 240) + 'px';
  empty.querySelector('.sf-empty-title').textContent = props.empty_title || 'Nothing to show yet';
  empty.querySelector('.sf-empty-body').textContent = props.empty_body || '';
}

async function draw() {
  root.setAttribute('aria-label', props.label || 'Plot');
  if (busy) { again = true; return; }
  let shown = null;
  try { shown = figure(); } catch (error) { console.error('PlotlyView: the figure is not valid JSON', error); }
  if (!shown) { showEmpty(); return; }
  busy = true;
  try {
    empty.hidden = true;
    stage.hidden = false;
    root.querySelector('.sf-plot-tools').hidden = false;
    const layout = shown.layout || {};
    stage.style.height = (layout.height || props.min_plot_height || 320) + 'px';
    // In a hidden tab the width is 0; the ResizeObserver calls again when there is room.
    waiting = !stage.offsetWidth;
    if (waiting) return;
    const styles = getComputedStyle(root);
    layout.width = undefined;
    if (outline && outlinedIn === props.value) layout.shapes = [outline];
    else outline = null;
    await Plotly.react(stage, resolve(shown.data || [], styles), resolve(layout, styles), CONFIG);
    drawnWidth = stage.offsetWidth;
    stage.dataset.draws = String(Number(stage.dataset.draws || 0) + 1);
    listen();
  } catch (error) {
    console.error('PlotlyView: drawing failed', error);
  } finally {
    busy = false;
    if (again) { again = false; draw(); }
  }
}

function frameCell(point) {
  const trace = (stage._fullData || [])[point.curveNumber ?? 0];
  const meta = (stage.layout || {}).meta || {};
  if (!trace || trace.type !== 'heatmap' || !('selected' in meta)) return;
  const across = (trace.dx || 1) / 2;
  const down = (trace.dy || 1) / 2;
  outline = {type: 'rect', x0: point.x - across, x1: point.x + across, y0: point.y - down, y1: point.y + down,
    line: {color: 'var(--plot-ink)', width: 2.5}};
  outlinedIn = props.value;
  Plotly.relayout(stage, {shapes: [resolve(outline, getComputedStyle(root))]});
}

function report(point) {
  const scalar = (item) => (typeof item === 'number' || typeof item === 'string' ? item : null);
  const data = point.customdata;
  trigger('select', {
    x: scalar(point.x),
    y: scalar(point.y),
    customdata: Array.isArray(data) ? data.map(scalar).slice(0, 16) : scalar(data),
    curve: point.curveNumber ?? 0,
  });
  // After the request has left: framing costs a redraw of its own.
  requestAnimationFrame(() => frameCell(point));
}

function listen() {
  if (listening) return;
  listening = true;
  stage.on('plotly_click', (event) => { if (event.points && event.points.length) report(event.points[0]); });
}

// Keyboard: arrows walk over the cells of a heatmap, Enter or Space selects; the cell is also read out.
function heatmap() {
  const full = stage._fullData || [];
  const index = full.findIndex((trace) => trace.type === 'heatmap');
  return index < 0 ? null : {trace: full[index], index};
}
function index0(value, start, step) { return Math.round((value - (start ?? 0)) / (step || 1)); }
function at(list, index, start, step) { return list && list.length > index ? list[index] : (start ?? 0) + index * (step ?? 1); }

stage.addEventListener('keydown', (event) => {
  const map = heatmap();
  if (!map) return;
  const {trace, index} = map;
  const rows = trace.z.length;
  const columns = trace.z[0].length;
  const moves = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]};
  if (!(event.key in moves) && event.key !== 'Enter' && event.key !== ' ') return;
  event.preventDefault();
  // Starts at the framed cell, if there is one.
  const chosen = ((stage.layout || {}).meta || {}).selected;
  const start = outline ? [(outline.y0 + outline.y1) / 2, (outline.x0 + outline.x1) / 2] : chosen;
  if (!cursor) cursor = start ? [index0(start[0], trace.y0, trace.dy), index0(start[1], trace.x0, trace.dx)] : [0, 0];
  else if (event.key in moves) cursor = [cursor[0] + moves[event.key][0], cursor[1] + moves[event.key][1]];
  cursor = [Math.min(Math.max(cursor[0], 0), rows - 1), Math.min(Math.max(cursor[1], 0), columns - 1)];
  const [r, c] = cursor;
  const x = at(trace.x, c, trace.x0, trace.dx);
  const y = at(trace.y, r, trace.y0, trace.dy);
  const value = trace.z[r][c];
  if (event.key in moves) {
    Plotly.Fx.hover(stage, {xval: x, yval: y}, 'xy');
    const words = trace.text && trace.text[r] && trace.text[r][c];
    spoken.textContent = (words ? String(words).replace(/<[^>]*>/g, ' ') : `row ${y}, column ${x}`) + ` ${words ? '' : value ?? 'no value'}`;
  } else if (value !== null && value !== undefined && !Number.isNaN(value)) {
    report({x, y, customdata: trace.customdata && trace.customdata[r] && trace.customdata[r][c], curveNumber: index});
  }
});
stage.addEventListener('blur', () => { cursor = null; if (listening) Plotly.Fx.unhover(stage); });

// Export: made here from what is shown, nothing is sent anywhere.
function save(href, ending) {
  const link = document.createElement('a');
  const name = props.filename || ((stage.layout || {}).meta || {}).name || 'plot';
  link.href = href;
  link.download = String(name).replace(/[^\w.-]+/g, '_') + ending;
  link.click();
}

async function savePng() {
  const styles = getComputedStyle(root);
  const layout = {...stage.layout, paper_bgcolor: styles.getPropertyValue('--plot-surface').trim(), autosize: false};
  const size = {width: stage.offsetWidth, height: stage.offsetHeight};
  save(await Plotly.toImage({data: stage.data, layout: {...layout, ...size}}, {format: 'png', scale: 2, ...size}), '.png');
}

function readable(text) {
  const box = document.createElement('textarea');
  box.innerHTML = String(text).replace(/<br>/g, ' ').replace(/<[^>]*>/g, '');
  return box.value;
}
function cell(value) {
  if (value === null || value === undefined || (typeof value === 'number' && Number.isNaN(value))) return '';
  if (typeof value === 'number') return String(value);
  let text = readable(value);
  // A spreadsheet would run a name that begins like a formula.
  if (/^[=+\-@\t\r]/.test(text)) text = "'" + text;
  return /[",\n\r]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
}
function tick(axis, value) {
  if (!axis || !axis.tickvals || !axis.ticktext) return value;
  const index = Array.from(axis.tickvals).indexOf(value);
  return index < 0 ? value : axis.ticktext[index];
}
function csvText() {
  const lines = [];
  const axisOf = (id, letter) => stage._fullLayout[letter + 'axis' + String(id || letter).slice(1)];
  for (const trace of stage._fullData || []) {
    const xAxis = axisOf(trace.xaxis, 'x');
    const yAxis = axisOf(trace.yaxis, 'y');
    if (trace.type === 'heatmap') {
      lines.push(['row', 'column', 'value', 'name']);
      for (let r = 0; r < trace.z.length; r++) for (let c = 0; c < trace.z[r].length; c++) {
        const name = trace.customdata && trace.customdata[r] ? trace.customdata[r][c] : '';
        lines.push([tick(yAxis, at(trace.y, r, trace.y0, trace.dy)), tick(xAxis, at(trace.x, c, trace.x0, trace.dx)),
          trace.z[r][c], name]);
      }
    } else {
      if (!lines.length) lines.push(['series', 'x axis', 'y axis', 'x', 'y', 'label']);
      const length = (trace.y || trace.x || []).length;
      const title = (axis) => (axis && axis.title && axis.title.text) || '';
      for (let i = 0; i < length; i++) {
        const label = Array.isArray(trace.text) ? trace.text[i] : '';
        lines.push([trace.name, title(xAxis), title(yAxis), tick(xAxis, trace.x[i]), tick(yAxis, trace.y[i]), label]);
      }
    }
  }
  return lines.map((line) => line.map(cell).join(',')).join('\r\n') + '\r\n';
}
root.querySelector('.sf-plot-png').addEventListener('click', savePng);
root.querySelector('.sf-plot-csv').addEventListener('click', () => {
  const url = URL.createObjectURL(new Blob(['\ufeff' + csvText()], {type: 'text/csv'}));
  save(url, '.csv');
  setTimeout(() => URL.revokeObjectURL(url), 10000);
});

let drawnWidth = 0;
let frame = 0;
const sizes = new ResizeObserver(() => {
  if (!element.isConnected) { sizes.disconnect(); return; }
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => {
    if (stage.hidden || !stage.offsetWidth) return;
    if (waiting || !listening) draw();
    else if (stage.offsetWidth !== drawnWidth) { drawnWidth = stage.offsetWidth; Plotly.Plots.resize(stage); }
  });
});
sizes.observe(root);

const themes = new MutationObserver(() => {
  if (!element.isConnected) { themes.disconnect(); return; }
  if (isDark() !== dark) { dark = isDark(); draw(); }
});
themes.observe(document.body, {attributes: true, attributeFilter: ['class']});

// One answer of the server may change many plots: those in view are drawn and painted first, the others right after.
function drawInOrder() {
  const box = root.getBoundingClientRect();
  if (box.bottom > 0 && box.top < window.innerHeight) draw();
  else setTimeout(draw, 30);
}

watch(['value', 'label', 'empty_title', 'empty_body'], drawInOrder);
draw();
