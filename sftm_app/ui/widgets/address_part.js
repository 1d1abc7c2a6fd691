// The browser half of AddressPart: runs once, as the body of function(element, trigger, props, watch).
const {part, flat} = element.querySelector('[data-part]').dataset;

function take() {
  const address = (window.sfAddress = window.sfAddress || {parts: {}, follow() {}});
  const value = props.value || '';
  address.parts[part] = value && flat !== 'True' ? part + '=' + encodeURIComponent(value) : value;
  address.follow(part);
}
watch(['value'], take);
take();
