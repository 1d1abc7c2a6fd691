// The browser half of Sliders: runs once, as the body of function(element, trigger, props, watch).
const box = element.querySelector('.sf-sliders');
let rows = [];
let sent = null;

function send(event) {
  sent = JSON.stringify(rows);
  props.value = sent;
  trigger(event);
}

function tidy(value) {
  return String(Number(Number(value).toPrecision(6)));
}

function row(item, index) {
  const line = document.createElement('div');
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
  // The value itself: it may lie beyond the ends of the slider. The server says which numbers do not work.
  const typed = document.createElement('input');
  Object.assign(typed, {type: 'number', step: 'any', value: tidy(item[2])});
  typed.setAttribute('aria-label', `${props.label} ${item[0]}, typed`);
  range.addEventListener('input', () => {
    rows[index][2] = Number(range.value);
    typed.value = tidy(rows[index][2]);
    send('input');
  });
  range.addEventListener('change', () => send('release'));
  typed.addEventListener('change', () => {
    const value = Number(typed.value);
    if (typed.value.trim() === '' || !Number.isFinite(value)) { typed.value = tidy(rows[index][2]); return; }
    rows[index][2] = value;
    range.value = value;
    send('release');
  });
  line.append(dot, name, range, typed);
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
