"use strict";
(() => {
  const ACCOUNTS = [
    ["prefill", "prefill"], ["decode", "decode"], ["idle-share", "idle, shared by requests"],
    ["idle", "idle"], ["unattributed", "unattributed"],
  ];
  const SHOWN_SECONDS = 180;
  const PATIENCE_SECONDS = 5;
  const by = (id) => document.getElementById(id);
  const charts = new Map();
  let source = null;
  let heardAt = 0;

  // -- words --------------------------------------------------------------------

  // outside text is only ever text, and what could turn a line round is spelled out
  const plain = (text) => String(text).replace(/[\p{C}\p{Zl}\p{Zp}]/gu,
    (c) => "\\u{" + c.codePointAt(0).toString(16) + "}");
  const digits = (value) => value === 0 ? "0" : Math.abs(value) >= 1000
    ? Math.round(value).toLocaleString("en").replaceAll(",", " ")
    : String(Number(value.toPrecision(3)));
  const SCALES = [[3.6e9, "MWh", 3.6e9], [3.6e6, "kWh", 3.6e6], [1e3, "kJ", 1e3], [1, "J", 1], [1e-3, "mJ", 1e-3]];
  const joules = (value) => {
    if (value === null || value === undefined) return "unknown";
    const [, unit, scale] = SCALES.find(([least]) => Math.abs(value) >= least) ?? SCALES.at(-2);
    return digits(value / scale) + " " + unit;
  };
  const watts = (value) => value === null || value === undefined ? "unknown" : digits(value) + " W";
  const count = (value) => value === null || value === undefined ? "–" : digits(Math.round(value));
  const clock = (unix) => new Date(unix * 1000).toLocaleTimeString("en", { hour12: false });
  const seconds = (value) => value < 100 ? digits(Math.max(0, value)) + " s"
    : value < 6000 ? Math.round(value / 60) + " min" : (value / 3600).toFixed(1) + " h";

  function element(tag, text, kind) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = plain(text);
    if (kind) made.className = kind;
    return made;
  }

  function rows(table, lines) {
    const body = document.createDocumentFragment();
    for (const line of lines) {
      const row = element("tr");
      for (const [text, kind] of line) {
        const cell = element("td", text, kind);
        if (kind === "text") cell.title = plain(text);
        row.append(cell);
      }
      body.append(row);
    }
    by(table).tBodies[0].replaceChildren(body);
  }

  function say(text, kind) {
    const status = by("status");
    if (status.textContent !== text) status.textContent = text;
    status.className = "pill " + kind;
  }

  // -- power over time ----------------------------------------------------------

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  class PowerChart {
    constructor(name) {
      this.rows = [];
      this.section = element("section");
      const title = element("h2", name);
      title.id = "engine-" + charts.size;
      this.section.setAttribute("aria-labelledby", title.id);
      this.tiles = element("div", undefined, "tiles");
      this.card = element("figure", undefined, "card chart");
      this.card.style.margin = "0";
      this.place = element("div");
      this.caption = element("figcaption", "", "soft");
      const legend = element("ul", undefined, "legend");
      for (const [kind, text] of ACCOUNTS) {
        const item = element("li");
        item.append(element("span", undefined, "key " + kind), text);
        legend.append(item);
      }
      this.card.append(this.place, legend, this.caption);
      this.section.append(title, this.tiles, this.card);
      by("engines").append(this.section);
    }

    add(more) {
      const last = this.rows.at(-1)?.[0] ?? -Infinity;
      this.rows.push(...more.filter(([at]) => at > last));
      const first = (this.rows.at(-1)?.[0] ?? 0) - SHOWN_SECONDS;
      this.rows = this.rows.filter(([at]) => at > first);
    }

    data() {
      const at = this.rows.map(([when]) => when);
      const bands = ACCOUNTS.map(() => []);
      for (const [, ...values] of this.rows) {
        let sum = 0;
        values.forEach((value, n) => {
          sum = value === null ? null : sum + value;
          bands[n].push(sum);
        });
      }
      return [at, ...bands.reverse()];
    }

    draw() {
      const width = Math.max(240, this.place.clientWidth);
      if (!this.plot) {
        const axis = { stroke: () => colour("soft"), grid: { stroke: () => colour("line") }, ticks: { show: false } };
        this.plot = new uPlot({
          width, height: 200, legend: { show: false }, cursor: { show: false },
          scales: { y: { range: (_, __, high) => [0, Math.max(1, high * 1.08)] } },
          axes: [{ ...axis, values: (_, ticks) => ticks.map(clock) }, { ...axis, size: 62, values: (_, ticks) => ticks.map((tick) => tick + " W") }],
          series: [{}, ...ACCOUNTS.slice().reverse().map(([kind]) => ({
            stroke: () => colour(kind), fill: () => colour(kind), width: 0, points: { show: false },
          }))],
        }, this.data(), this.place);
        this.place.querySelector(".uplot").setAttribute("aria-hidden", "true");
        return;
      }
      if (this.plot.width !== width) this.plot.setSize({ width, height: 200 });
      this.plot.setData(this.data());
    }

    show(engine, now) {
      this.add(engine.power);
      const latest = this.rows.at(-1);
      const books = engine.books;
      const lag = books.settled_unix_seconds === null ? null : now - books.settled_unix_seconds;
      const sum = latest && latest[1] !== null ? latest.slice(1).reduce((a, b) => a + b, 0) : null;
      const active = latest && latest[1] !== null ? latest[1] + latest[2] + latest[3] : null;
      this.tiles.replaceChildren(...[
        [watts(sum), "power, " + (books.boundary ?? "no sensor")],
        [watts(active), "of it for requests"],
        [String(engine.requests), "requests running"],
        [joules(books.measured_joules), "measured since start"],
        [lag === null ? "unknown" : seconds(lag), "until energy is settled"],
      ].map(([value, text]) => {
        const tile = element("div", undefined, "card tile");
        tile.append(element("b", value), element("span", text));
        return tile;
      }));
      this.caption.textContent = sum === null
        ? "Power is not known now: " + plain(engine.sensor.last_error ?? "nothing is settled yet") + "."
        : "Power by account over the last " + SHOWN_SECONDS / 60 + " min. In the last second: " +
          ACCOUNTS.map(([, text], n) => text + " " + watts(latest[n + 1])).join(", ") + ".";
      this.draw();
    }
  }

  // -- one message --------------------------------------------------------------

  function show(message, isWhole) {
    const now = message.at_unix_seconds;
    heardAt = Date.now();
    by("login").hidden = true;
    by("logout").hidden = !message.has_token;
    by("shown").hidden = false;
    const { ready, reasons } = message.readiness;
    say(ready ? "ready" : "not ready", ready ? "good" : "bad");
    by("about").textContent = "version " + plain(message.version) + ", run " + plain(message.run);
    const list = by("reasons");
    if (list.dataset.shown !== reasons.join("\n")) {
      list.dataset.shown = reasons.join("\n");
      list.replaceChildren(...reasons.map((reason) => element("li", reason)));
    }
    by("simulated").hidden = !message.engines.some((engine) => engine.books.simulated);
    const names = new Set(message.engines.map((engine) => engine.engine));
    for (const [name, chart] of charts) {
      if (!names.has(name)) { chart.section.remove(); charts.delete(name); }
    }
    for (const engine of message.engines) {
      if (!charts.has(engine.engine)) charts.set(engine.engine, new PowerChart(engine.engine));
      const chart = charts.get(engine.engine);
      if (isWhole) chart.rows = [];
      chart.show(engine, now);
    }
    const running = message.engines.reduce((sum, engine) => sum + engine.requests, 0);
    by("n-running").textContent = running > message.running.length
      ? running + ", the oldest " + message.running.length + " shown" : String(running);
    by("none-running").hidden = running > 0;
    rows("running", message.running.map((request) => [
      [request.request_id, "text"], [joules(request.energy_joules), "num"],
      [seconds(now - request.arrived_unix_seconds), "num"], [count(request.prompt_tokens), "num"],
      [count(request.output_tokens), "num"], [request.kind], [request.model, "text"], [request.engine, "text"],
    ]));
    by("none-recent").hidden = message.recent.length > 0;
    rows("recent", message.recent.map((record) => {
      const { energy_joules: total, low_joules: low, high_joules: high, grade } = record.energy;
      const tokens = record.output_tokens;
      const isKnown = (value) => value !== null && value !== undefined;
      return [
        [record.request_id, "text"], [joules(total), "num"],
        [isKnown(low) && isKnown(high) ? joules(low) + " to " + joules(high) : "–", "num"], [grade ?? "–"],
        [isKnown(total) && tokens ? joules(total / tokens) : "–", "num"], [count(record.prompt_tokens), "num"],
        [(record.is_output_lower_bound ? "≥ " : "") + count(tokens), "num"],
        [seconds(now - record.finished_unix_seconds) + " ago", "num"], [record.outcome ?? "–"],
        [record.tenant ?? "–", "text"], [record.model ?? "–", "text"],
      ];
    }));
    rows("books", message.engines.map(({ engine, books }) => {
      const phases = books.attributed_joules ?? {};
      const apart = Object.entries(books.unattributed_joules ?? {})
        .filter(([, value]) => Math.abs(value) >= 0.05).map(([reason, value]) => reason + " " + joules(value));
      return [
        [engine, "text"], [joules(books.measured_joules), "num"], [joules(phases.prefill), "num"],
        [joules(phases.decode), "num"], [joules(books.idle_share_joules), "num"],
        [joules(books.idle_joules), "num"], [apart.join(", ") || "0 J", "num"],
        [books.residual_joules === null ? "unknown" : joules(books.residual_joules), "num"],
      ];
    }));
    rows("upstreams", message.engines.map(({ engine, upstream, sensor, books }) => [
      [engine, "text"], [upstream ? upstream.state + (upstream.reason ? ": " + upstream.reason : "") : "–", "text"],
      [upstream ? upstream.url : "–", "text"], [upstream?.models?.join(", ") ?? "any", "text"],
      [sensor.source, "text"], [books.boundary ?? "–"],
      [sensor.up ? "up" : "down: " + (sensor.last_error ?? "no answer yet"), "text"],
    ]));
  }

  // -- the stream, and who may read it ------------------------------------------

  async function connect() {
    source?.close();
    const reply = await fetch("/info").catch(() => null);
    if (reply?.status === 401) return askForToken();
    source = new EventSource("/live");
    source.addEventListener("whole", (event) => show(JSON.parse(event.data), true));
    source.addEventListener("more", (event) => show(JSON.parse(event.data), false));
    source.onerror = () => {
      // a stream that ends is asked for again by the browser; one that is refused is not
      if (source.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
    };
  }

  function askForToken() {
    say("token needed", "warn");
    by("shown").hidden = true;
    by("logout").hidden = true;
    by("login").hidden = false;
    by("token").focus();
  }

  by("login").addEventListener("submit", async (event) => {
    event.preventDefault();
    by("refusal").textContent = "";
    const reply = await fetch("/login", {
      method: "POST", headers: { "content-type": "application/json" },
      body: JSON.stringify({ token: by("token").value }),
    }).catch(() => null);
    if (reply?.ok) {
      by("token").value = "";
      connect();
    } else {
      by("refusal").textContent = reply ? "That is not the token." : "The proxy does not answer.";
      by("token").select();
    }
  });

  by("logout").addEventListener("click", async () => {
    source?.close();
    await fetch("/logout", { method: "POST" }).catch(() => null);
    askForToken();
  });

  setInterval(() => {
    if (heardAt && Date.now() - heardAt > PATIENCE_SECONDS * 1000 && by("login").hidden) {
      say("no answer for " + seconds((Date.now() - heardAt) / 1000), "bad");
    }
  }, 1000);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change",
    () => charts.forEach((chart) => { chart.plot?.destroy(); chart.plot = undefined; chart.draw(); }));
  addEventListener("resize", () => charts.forEach((chart) => chart.draw()));
  connect();
})();
