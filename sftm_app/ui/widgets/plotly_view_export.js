// Exports of PlotlyView: made here from what is shown, nothing is sent anywhere. Continues plotly_view.js.
function save(parts, type, ending) {
  const link = document.createElement('a');
  const name = props.filename || ((stage.layout || {}).meta || {}).name || 'plot';
  link.href = URL.createObjectURL(new Blob(parts, {type}));
  link.download = String(name).replace(/[^\w.-]+/g, '_') + ending;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// What is drawn has its colours resolved already; only the page behind it is missing.
async function picture(format) {
  const surface = getComputedStyle(root).getPropertyValue('--plot-surface').trim();
  const size = {width: stage.offsetWidth, height: stage.offsetHeight};
  const layout = {...stage.layout, paper_bgcolor: surface, autosize: false, ...size};
  const url = await Plotly.toImage({data: stage.data, layout}, {format, scale: format === 'png' ? 2 : 1, ...size});
  return url.slice(url.indexOf(',') + 1);
}
async function savePng() {
  save([Uint8Array.from(atob(await picture('png')), (letter) => letter.charCodeAt(0))], 'image/png', '.png');
}
async function saveSvg() {
  save([decodeURIComponent(await picture('svg'))], 'image/svg+xml', '.svg');
}

function readable(text) {
  const box = document.createElement('textarea');
  box.innerHTML = String(text).replace(/<br>/g, ' ').replace(/<[^>]*>/g, '');
  return box.value;
}
// Half of the numbers are float32: as few digits as say which one it is.
function digits(value) {
  if (Math.fround(value) !== value) return String(Number(value.toPrecision(15)));
  for (let count = 6; count < 9; count++) {
    const shown = Number(value.toPrecision(count));
    if (Math.fround(shown) === value) return String(shown);
  }
  return String(value);
}
function cell(value) {
  if (value === null || value === undefined || (typeof value === 'number' && Number.isNaN(value))) return '';
  if (typeof value === 'number') return digits(value);
  let text = readable(value).trim();
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
  for (const trace of stage._fullData || []) {
    if (trace.visible === false || isAid(trace)) continue;
    const [xAxis, yAxis] = [axisOf(trace, 'x'), axisOf(trace, 'y')];
    if (trace.type === 'heatmap') {
      // Colours may stand for powers of ten; the values themselves then come along.
      const values = (trace.meta && trace.meta.values) || trace.z;
      const measure = (trace.colorbar && trace.colorbar.title && trace.colorbar.title.text) || 'value';
      lines.push([titleOf(yAxis) || 'row', titleOf(xAxis) || 'column', measure, 'name']);
      for (let r = 0; r < values.length; r++) for (let c = 0; c < values[r].length; c++) {
        const inCell = (grid) => grid && grid[r] && grid[r][c];
        const [x, y] = features({
          x: at(trace.x, c, trace.x0, trace.dx), y: at(trace.y, r, trace.y0, trace.dy),
          customdata: inCell(trace.customdata), curveNumber: trace.index,
        });
        // What a cell is called: the tensor, or what hovering says of it.
        const name = inCell(trace.customdata || trace.text);
        lines.push([tick(yAxis, y), tick(xAxis, x), values[r][c], typeof name === 'string' ? name : '']);
      }
    } else {
      if (!lines.length) lines.push(['series', 'x axis', 'y axis', 'x', 'y', 'label']);
      for (let i = 0; i < (trace.y || []).length; i++) {
        lines.push([seriesOf(trace), titleOf(xAxis), titleOf(yAxis), tick(xAxis, trace.x[i]), tick(yAxis, trace.y[i]),
          labelOf(trace, i)]);
      }
    }
  }
  return lines.map((line) => line.map(cell).join(',')).join('\r\n') + '\r\n';
}
root.querySelector('.sf-plot-png').addEventListener('click', savePng);
root.querySelector('.sf-plot-svg').addEventListener('click', saveSvg);
root.querySelector('.sf-plot-csv').addEventListener('click', () => save(['\ufeff' + csvText()], 'text/csv', '.csv'));
