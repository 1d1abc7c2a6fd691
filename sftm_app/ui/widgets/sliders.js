// The browser half of Sliders: runs once, as the body of function(element, trigger, props, watch).
const box = element.querySelector('.sf-sliders');
let rows = [];
let sent = null;

function send(event) {
  sent = JSON.stringify(rows);
  props.value = sent;
  trigger(event);
}

function row(item, index) {
  const line = document.createElement('label');
  line.className = 'sf-slider';
  const dot = document.createElement('span');
  dot.className = 'sf-dot';
  dot.style.background = item[1];
  const name = document.createElement('span');
  name.className = 'sf-slider-name';
  name.textContent = name.title = item[0];
  const range = document.createElement('input');
  Object.assign(range, {type: 'range', min: props.minimum, max: props.maximum, step: props.step});
  range.value = item[2];
  range.setAttribute('aria-label', `${props.label} ${item[0]}`);
  const shown = document.createElement('output');
  shown.textContent = Number(item[2]).toFixed(2);
  range.addEventListener('input', () => {
    rows[index][2] = Number(range.value);
    shown.textContent = rows[index][2].toFixed(2);
    send('input');
  });
  range.addEventListener('change', () => send('release'));
  line.append(dot, name, range, shown);
  return line;
}

function take() {
  box.setAttribute('aria-label', props.label || 'Values');
  if (props.value === sent) return;   // our own: redrawing would take the slider out of the hand
  sent = props.value;
  try { rows = JSON.parse(props.value || '[]'); } catch (error) { rows = []; }
  box.replaceChildren(...rows.map(row));
}
watch(['value', 'label'], take);
take();
