// The connection: server-sent events; when they do not come, asking again and again, ever more slowly. A server that
// restarts, a port-forward that breaks and a laptop that slept all look the same from here: words stop coming.

const SOONEST = 500;
const LATEST = 15_000;
const POLL = 2_000;
const SILENCE = 20_000; // after so long without a word, look whether anybody is there
const FIRST_WORD = 3_000; // a stream begins with the status: if that does not come, something in between keeps it
const PATIENCE = 8_000;
const POLLS_BEFORE_EVENTS = 10;

class Connection {
  constructor(base, { onStatus, onPart, onState }) {
    this.base = base;
    this.onStatus = onStatus;
    this.onPart = onPart;
    this.onState = onState;
    this.source = null;
    this.timer = 0;
    this.failures = 0;
    this.polls = 0;
  }

  open() {
    this.close();
    this.heard = false;
    const source = new EventSource(`${this.base}v1/events`);
    this.source = source;
    source.addEventListener('status', (event) => this.hear(event, this.onStatus));
    for (const kind of ['phase', 'rollout']) {
      source.addEventListener(kind, (event) => this.hear(event, (part) => this.onPart(kind, part)));
    }
    source.onerror = () => this.lost(source);
    this.after(FIRST_WORD, () => this.look());
  }

  close() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  hear(event, tell) {
    const fact = parsed(event.data);
    if (!fact) return;
    this.heard = true;
    this.failures = 0;
    this.polls = 0;
    this.onState('live');
    tell(fact);
    this.after(SILENCE, () => this.look());
  }

  // The browser would try again by itself, but at its own pace, and not after every kind of failure.
  lost(source) {
    if (source !== this.source) return;
    this.close();
    if (this.heard) this.after(SOONEST, () => this.open()); // an endpoint may end a stream now and then: no drama
    else this.look();
    this.heard = false;
  }

  // Is anybody there? Then show what it says, and go on asking; the events are tried again now and then.
  async look() {
    const status = await this.ask();
    if (status && this.source && this.heard) {
      this.onStatus(status);
      this.after(SILENCE, () => this.look());
      return;
    }
    this.close();
    if (!status) {
      this.failures += 1;
      this.polls = 0;
      const pause = Math.min(LATEST, SOONEST * 2 ** (this.failures - 1)) * (0.75 + Math.random() / 2);
      this.onState('reconnecting', pause / 1000);
      this.after(pause, () => this.open());
      return;
    }
    this.failures = 0;
    this.polls += 1;
    this.onState('polling');
    this.onStatus(status);
    this.after(POLL, () => (this.polls % POLLS_BEFORE_EVENTS ? this.look() : this.open()));
  }

  async ask() {
    try {
      const answer = await fetch(`${this.base}v1/status`, { cache: 'no-store', signal: AbortSignal.timeout(PATIENCE) });
      return answer.ok ? parsed(await answer.text()) : null;
    } catch {
      return null;
    }
  }

  after(milliseconds, act) {
    clearTimeout(this.timer);
    this.timer = setTimeout(act, milliseconds);
  }
}

function parsed(text) {
  try {
    const fact = JSON.parse(text);
    return fact && typeof fact === 'object' ? fact : null;
  } catch {
    return null;
  }
}
