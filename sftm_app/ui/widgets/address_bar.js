// The browser half of AddressBar: runs once, as the body of function(element, trigger, props, watch).
const button = element.querySelector('.sf-copy');
const said = element.querySelector('.sf-copied');
let timer = 0;

function take() {
  if (!props.value) return;
  const theme = new URL(location.href).searchParams.get('__theme');
  const query = props.value + (theme ? '&__theme=' + encodeURIComponent(theme) : '');
  // Replaced, not pushed: a moved slider is no page to go back to.
  history.replaceState(history.state, '', location.pathname + '?' + query);
}

function say(text) {
  said.textContent = text;
  clearTimeout(timer);
  timer = setTimeout(() => { said.textContent = ''; }, 2500);
}

// Without a secure context there is no clipboard; selecting a text field and copying it works everywhere.
function copyByHand(text) {
  const field = document.createElement('textarea');
  field.value = text;
  field.style.position = 'fixed';
  document.body.append(field);
  field.select();
  const done = document.execCommand('copy');
  field.remove();
  return done;
}

button.addEventListener('click', async () => {
  const url = new URL(location.href);
  url.searchParams.delete('__theme');
  try {
    await navigator.clipboard.writeText(url.href);
    say('Copied');
  } catch (error) {
    say(copyByHand(url.href) ? 'Copied' : 'The browser refused; copy the address from its bar.');
  }
});
watch(['value'], take);
take();
