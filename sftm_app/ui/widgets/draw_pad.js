// The browser half of DrawPad: runs once for each pad, as the body of function(element, trigger, props, watch).
const pad = element.querySelector('.sf-pad');
const canvas = pad.querySelector('canvas');
const hint = pad.querySelector('.sf-pad-hint');
const undoButton = pad.querySelector('.sf-pad-undo');
const clearButton = pad.querySelector('.sf-pad-clear');
const SIDE = canvas.width;
const OUT = props.out_size || 112;
const context = canvas.getContext('2d', {willReadFrequently: true});
let strokes = [];
let background = null;   // a sample given by the server, as a small canvas
let active = null;
let sent = '';
let timer = 0;

function fill() {
  context.fillStyle = '#000000';
  context.fillRect(0, 0, SIDE, SIDE);
  if (background) {
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = 'high';
    context.drawImage(background, 0, 0, SIDE, SIDE);
  }
}
function paint(stroke) {
  context.strokeStyle = context.fillStyle = '#ffffff';
  context.lineWidth = stroke.width;
  context.lineCap = context.lineJoin = 'round';
  context.beginPath();
  const [first, ...rest] = stroke.points;
  if (!rest.length) {
    context.arc(first[0], first[1], stroke.width / 2, 0, 2 * Math.PI);
    context.fill();
    return;
  }
  context.moveTo(first[0], first[1]);
  // Curves through the middles of the segments: a quick hand still draws a smooth line.
  for (let i = 0; i < rest.length - 1; i++) {
    const [x, y] = rest[i];
    context.quadraticCurveTo(x, y, (x + rest[i + 1][0]) / 2, (y + rest[i + 1][1]) / 2);
  }
  const last = rest[rest.length - 1];
  context.lineTo(last[0], last[1]);
  context.stroke();
}
function show() {
  fill();
  strokes.forEach(paint);
  const blank = !strokes.length && !background && !active;
  hint.hidden = !blank;
  undoButton.disabled = !strokes.length;
  clearButton.disabled = blank;
}
// "gray8:WIDTHxHEIGHT:" and the pixels in base64: no image decoder has to be trusted with it on the server.
function encode() {
  if (!strokes.length && !background) return '';
  const small = document.createElement('canvas');
  small.width = small.height = OUT;
  const target = small.getContext('2d');
  target.imageSmoothingQuality = 'high';
  target.drawImage(canvas, 0, 0, OUT, OUT);
  const rgba = target.getImageData(0, 0, OUT, OUT).data;
  let bytes = '';
  for (let i = 0; i < rgba.length; i += 4) bytes += String.fromCharCode(rgba[i]);
  return `gray8:${OUT}x${OUT}:${btoa(bytes)}`;
}
function decode(value) {
  const found = /^gray8:(\d{1,4})x(\d{1,4}):([A-Za-z0-9+/=]+)$/.exec(value || '');
  if (!found) return null;
  const [width, height] = [Number(found[1]), Number(found[2])];
  const bytes = atob(found[3]);
  if (!width || !height || bytes.length !== width * height) return null;
  const image = new ImageData(width, height);
  for (let i = 0; i < bytes.length; i++) {
    image.data.fill(bytes.charCodeAt(i), 4 * i, 4 * i + 3);
    image.data[4 * i + 3] = 255;
  }
  const out = document.createElement('canvas');
  out.width = width;
  out.height = height;
  out.getContext('2d').putImageData(image, 0, 0);
  return out;
}
function send() {
  clearTimeout(timer);
  timer = setTimeout(() => {
    sent = encode();
    props.value = sent;
    trigger('input');
  }, 100);
}
function position(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * SIDE, ((event.clientY - box.top) / box.height) * SIDE];
}
function undo() {
  if (!strokes.length) return;
  strokes.pop();
  show();
  send();
}
function clear() {
  strokes = [];
  background = null;
  active = null;
  show();
  send();
}

canvas.addEventListener('pointerdown', (event) => {
  if (active || (event.pointerType === 'mouse' && event.button !== 0)) return;
  event.preventDefault();
  clearTimeout(timer);
  try { canvas.setPointerCapture(event.pointerId); } catch (error) { /* a synthetic pointer */ }
  const firm = event.pointerType === 'pen' && event.pressure > 0 ? 0.6 + 0.8 * event.pressure : 1;
  active = {id: event.pointerId, width: (props.brush || 0.085) * SIDE * firm, points: [position(event)]};
  strokes.push(active);
  show();
});
canvas.addEventListener('pointermove', (event) => {
  if (!active || event.pointerId !== active.id) return;
  const steps = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
  for (const step of steps.length ? steps : [event]) {
    if (active.points.length < 20000) active.points.push(position(step));
  }
  show();
});
function lift(event) {
  if (!active || event.pointerId !== active.id) return;
  active = null;
  show();
  send();
}
canvas.addEventListener('pointerup', lift);
canvas.addEventListener('pointercancel', lift);
undoButton.addEventListener('click', undo);
clearButton.addEventListener('click', clear);
pad.addEventListener('keydown', (event) => {
  if (event.key === 'z' && (event.ctrlKey || event.metaKey)) { event.preventDefault(); undo(); }
  else if ((event.key === 'Delete' || event.key === 'Backspace') && event.target === canvas) { event.preventDefault(); clear(); }
});

function take() {
  canvas.setAttribute('aria-label', (props.label || 'Drawing pad') + ': draw with mouse, touch or pen; Control Z undoes');
  const value = props.value || '';
  if (value === sent && value !== '') return;
  if (value === '' && sent === '') { show(); return; }
  sent = value;
  clearTimeout(timer);
  strokes = [];
  active = null;
  background = decode(value);
  show();
}
watch(['value', 'label'], take);
sent = ' ';
take();
