// The timeline: points of (time, RSS, PSS) by the server's clock, kept in the page and, while its tab lives, across
// reloads; drawn as one SVG whose unit is the pixel.

const SVG = 'http://www.w3.org/2000/svg';
const MOST_POINTS = 4000;
const LONGEST = 3 * 3600;
const SAME = 2; // seconds
const TICKS = { 60: 10, 120: 30, 300: 60, 600: 120, 1800: 300, 3600: 600, 10800: 1800 }; // seconds between two labels
const STORE = `refork timeline ${location.pathname}`;

class Timeline {
  constructor(svg, reading) {
    this.svg = svg;
    this.reading = reading;
    this.points = [];
    this.marks = [];
    this.range = 300;
    this.cursor = null;
    this.scheduled = false;
    this.recall();
    new ResizeObserver(() => this.schedule()).observe(svg);
    svg.addEventListener('pointermove', (event) => this.point(event.offsetX));
    svg.addEventListener('pointerleave', () => this.leave());
    svg.addEventListener('blur', () => this.leave());
    svg.addEventListener('keydown', (event) => this.key(event));
    addEventListener('pagehide', () => this.remember());
  }

  add(time, rss, pss) {
    const last = this.points.at(-1);
    if (last && time <= last.time) {
      if (time < last.time - 60) this.points = []; // the clock was set back: what was drawn means nothing any more
      else return;
    }
    this.points.push({ time, rss, pss });
    this.points = this.points.filter((point) => point.time >= time - LONGEST);
    if (this.points.length > MOST_POINTS) {
      const half = MOST_POINTS / 2;
      this.points = this.points.filter((_, index) => index >= half || index % 2 === 0);
    }
    this.schedule();
  }

  // The server counts ids anew when it starts, and its clock may be put right a little while it runs.
  mark(mark) {
    const begun = (one) => one.since ?? one.time;
    const known = this.marks.find((each) => each.id === mark.id && Math.abs(begun(each) - begun(mark)) < SAME);
    if (known) Object.assign(known, mark);
    else this.marks.push(mark);
    this.marks = this.marks.slice(-200);
    this.schedule();
  }

  show(range) {
    this.range = range;
    this.cursor = null;
    this.schedule();
  }

  remember() {
    try {
      sessionStorage.setItem(STORE, JSON.stringify({ points: this.points, marks: this.marks }));
    } catch { /* no room, or not allowed: the timeline starts anew */ }
  }

  recall() {
    try {
      const { points, marks } = JSON.parse(sessionStorage.getItem(STORE) ?? '{}');
      this.points = list(points).filter((point) => isNumber(point.time) && isNumber(point.rss) && isNumber(point.pss));
      this.marks = list(marks).filter((mark) => isNumber(mark.time));
    } catch { /* not ours */ }
  }

  schedule() {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      this.draw();
    });
  }

  // --- drawing

  draw() {
    const { clientWidth: width, clientHeight: height } = this.svg;
    if (!width || !height) return;
    const end = this.points.at(-1)?.time ?? Date.now() / 1000;
    // As long as little is known, the window is no larger than it needs to be.
    const known = end - (this.points[0]?.time ?? end);
    const range = Math.min(this.range, Number(Object.keys(TICKS).find((seconds) => seconds >= known) ?? this.range));
    const start = end - range;
    const shown = this.points.filter((point) => point.time >= start);
    const [step, top] = scale(Math.max(MIB, ...shown.map((point) => point.rss)));
    const frame = { left: 68, right: width - 12, top: 20, bottom: height - 22 };
    const x = (time) => frame.left + ((time - start) / range) * (frame.right - frame.left);
    const y = (bytes) => frame.bottom - (bytes / top) * (frame.bottom - frame.top);
    this.frame = { ...frame, start, range, shown };

    const drawn = [];
    for (let bytes = 0; bytes <= top + step / 2; bytes += step) {
      drawn.push(line('grid', frame.left, y(bytes), frame.right, y(bytes)));
      drawn.push(text('', axis(bytes, top), frame.left - 8, y(bytes) + 4, 'end'));
    }
    const every = TICKS[range] * (width < 500 ? 2 : 1);
    for (let back = 0; back <= range; back += every) {
      const anchor = back === 0 ? 'end' : back === range ? 'start' : 'middle';
      drawn.push(text('', back ? `−${clock(back)}` : 'now', x(end - back), height - 5, anchor));
    }
    for (const run of runs(shown)) drawn.push(...curves(run, x, y, frame.bottom));
    let free = -Infinity;
    for (const mark of this.marks.filter((each) => each.time >= start && each.time <= end)) {
      const from = Math.max(frame.left, x(mark.since ?? mark.time));
      if (x(mark.time) - from > 1) drawn.push(rectangle('band', from, frame.top, x(mark.time) - from, frame.bottom - frame.top));
      if (mark.open) continue;
      const kind = mark.outcome === 'failed' ? 'failed' : mark.kind;
      const label = kind === 'refork' || kind === 'rebase' ? `gen ${mark.generation}` : kind;
      drawn.push(line(`mark ${kind}`, x(mark.time), frame.top - 4, x(mark.time), frame.bottom));
      if (x(mark.time) - 22 > free) {
        const labelled = Math.min(Math.max(x(mark.time), frame.left + 20), frame.right - 22);
        drawn.push(text('label', label, labelled, frame.top - 8, 'middle'));
        free = labelled + 26;
      }
    }
    const chosen = this.cursor === null ? null : nearest(shown, this.cursor);
    if (chosen) drawn.push(line('cursor', x(chosen.time), frame.top, x(chosen.time), frame.bottom));
    this.svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    this.svg.replaceChildren(...drawn);
    this.read(chosen, shown, end);
  }

  read(chosen, shown, end) {
    const point = chosen ?? shown.at(-1);
    if (!point) return say(this.reading, 'No measurement yet.');
    const when = chosen ? `${duration(end - point.time)} ago` : 'Now';
    say(this.reading, `${when}: ${size(point.pss)} in use, ${size(point.rss)} without sharing, ${size(point.rss - point.pss)} saved`);
    return undefined;
  }

  // --- pointing, by mouse and by keyboard

  point(offset) {
    if (!this.frame) return;
    const { left, right, start, range } = this.frame;
    this.cursor = start + ((offset - left) / (right - left)) * range;
    this.schedule();
  }

  leave() {
    this.cursor = null;
    this.schedule();
  }

  key(event) {
    const shown = this.frame?.shown ?? [];
    if (!shown.length) return;
    const at = this.cursor === null ? shown.length - 1 : shown.indexOf(nearest(shown, this.cursor));
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -shown.length, End: shown.length };
    if (event.key === 'Escape') this.leave();
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.cursor = shown[Math.min(shown.length - 1, Math.max(0, at + steps[event.key]))].time;
    this.schedule();
  }
}

// A line is broken where nothing was measured for much longer than usual: nobody knows what was there.
function runs(points) {
  const pauses = points.slice(1).map((point, index) => point.time - points[index].time).sort((a, b) => a - b);
  const usual = pauses[Math.floor(pauses.length / 2)] ?? 1;
  const found = [];
  for (const [index, point] of points.entries()) {
    const pause = index ? point.time - points[index - 1].time : Infinity;
    if (pause > Math.max(15, 4 * usual)) found.push([]);
    found.at(-1).push(point);
  }
  return found;
}

function curves(run, x, y, bottom) {
  const along = (key) => run.map((point) => `${x(point.time).toFixed(1)},${y(point[key]).toFixed(1)}`);
  const [rss, pss] = [along('rss'), along('pss')];
  const [first, last] = [x(run[0].time).toFixed(1), x(run.at(-1).time).toFixed(1)];
  return [
    path('gap', `M${rss.join('L')}L${pss.toReversed().join('L')}Z`),
    path('use', `M${pss.join('L')}L${last},${bottom}L${first},${bottom}Z`),
    path('rss', `M${rss.join('L')}`),
    path('pss', `M${pss.join('L')}`),
  ];
}

// Steps that people count in: 1, 2 or 5 times a power of ten; of GiB where the axis is labelled in them.
function scale(most) {
  const unit = most >= 4 * GIB ? GIB : MIB;
  const power = 10 ** Math.floor(Math.log10(most / unit / 4));
  const step = unit * power * [1, 2, 5, 10].find((factor) => most / (unit * power * factor) <= 4.5);
  return [step, Math.ceil((most * 1.02) / step) * step];
}

const axis = (bytes, top) => (top >= 4 * GIB ? `${amount(bytes / GIB, top >= 40 * GIB ? 0 : 1)} GiB` : `${amount(bytes / MIB, top >= 4 * MIB ? 0 : 1)} MiB`);
const clock = (seconds) => (seconds >= 3600 ? `${amount(seconds / 3600, 1)} h` : seconds >= 60 ? `${amount(seconds / 60, seconds % 60 ? 1 : 0)} min` : `${amount(seconds, 0)} s`);

function nearest(points, time) {
  let best = null;
  for (const point of points) if (!best || Math.abs(point.time - time) < Math.abs(best.time - time)) best = point;
  return best;
}

function shape(name, kind, attributes) {
  const made = document.createElementNS(SVG, name);
  if (kind) made.setAttribute('class', kind);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
const path = (kind, d) => shape('path', kind, { d });
const line = (kind, x1, y1, x2, y2) => shape('line', kind, { x1, y1, x2, y2 });
const rectangle = (kind, x, y, width, height) => shape('rect', kind, { x, y, width, height });
function text(kind, words, x, y, anchor) {
  const made = shape('text', kind, { x, y, 'text-anchor': anchor });
  made.textContent = words;
  return made;
}
