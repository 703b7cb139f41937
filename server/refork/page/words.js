// How the page says things: numbers with units, durations, and text that only ever is text.

const $ = (id) => document.getElementById(id);
const MIB = 1024 * 1024;
const GIB = 1024 * MIB;

const isNumber = (value) => typeof value === 'number' && Number.isFinite(value);
const orNull = (value) => (isNumber(value) ? value : null);
const list = (value) => (Array.isArray(value) ? value.filter((each) => each && typeof each === 'object') : []);

// What a server says about itself may hold anything: control characters and overrides of direction lose their power.
const plain = (value) => String(value ?? '').replace(/\p{C}/gu, '\uFFFD').slice(0, 500);

// Writing what stands there already would make a screen reader and the layout work for nothing.
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function amount(number, digits) {
  return number.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function sizeParts(bytes) {
  if (!isNumber(bytes)) return ['–', 'MiB'];
  if (Math.abs(bytes) >= 10 * GIB) return [amount(bytes / GIB, 1), 'GiB'];
  return [amount(bytes / MIB, Math.abs(bytes) < 100 * MIB ? 1 : 0), 'MiB'];
}

const size = (bytes) => (isNumber(bytes) ? sizeParts(bytes).join('\u00A0') : '–');
const count = (number) => (isNumber(number) ? amount(number, 0) : '–');
const percent = (part, whole) => (whole > 0 ? `${amount((100 * part) / whole, 0)}\u00A0%` : '–');

function duration(seconds) {
  if (!isNumber(seconds)) return '–';
  const whole = Math.max(0, Math.floor(seconds));
  const [days, hours, minutes] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  const two = (one, unit, other, smaller) => `${one}\u00A0${unit} ${other}\u00A0${smaller}`;
  if (days) return two(days, 'd', hours, 'h');
  if (hours) return two(hours, 'h', minutes, 'min');
  if (minutes) return two(minutes, 'min', whole % 60, 's');
  return `${whole}\u00A0s`;
}

const took = (seconds) => (isNumber(seconds) ? `${amount(seconds, seconds < 10 ? 2 : 1)}\u00A0s` : '');

function element(name, text = '') {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  return made;
}
