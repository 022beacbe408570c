// ioredis and node-redis over TLS, as a user with a password: each writes a key of its own and reads it back, over and over.
//
// clients.js DIRECTORY PORT PORT: the certificates are in DIRECTORY. Prints how often each has succeeded, as JSON, a line at a
// time; after the end of its input what went wrong, too.
'use strict';
const fs = require('fs');
const path = require('path');
const [directory, ...ports] = process.argv.slice(2);
const library = (name) => require(require.resolve(name, { paths: [directory] }));
const Redis = library('ioredis');
const { createClient } = library('redis');

const read = (name) => fs.readFileSync(path.join(directory, name));
const tls = { ca: read('ca.crt'), cert: read('client.crt'), key: read('client.key'), servername: 'localhost' };
const [username, password] = ['app', 'open-sesame'];
const again = (times) => Math.min(20 * times, 200);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// What a client may see of a master that dies; anything else is a fault.
const EXPECTED = /^(UNKNOWN|STANDBY|NOQUORUM|LOADING|BUSY)\b|closed|ECONN|EPIPE|socket|timeout/i;

const done = {};
const faults = [];
let isOver = false;

async function load(name, set, get) {
  done[name] = 0;
  // The outcome of a write that failed is not known: it may be read later.
  const maybe = new Set();
  for (let number = 0; !isOver; number++) {
    const value = `${name}-${number}`;
    try {
      maybe.add(value);
      const reply = await set(`app:${name}`, value);
      const found = await get(`app:${name}`);
      if (reply !== 'OK' || !maybe.has(found)) faults.push(`${name}: wrote ${value}, ${reply}, read ${found}`);
      if (found === value) maybe.clear();
      done[name]++;
    } catch (error) {
      if (!EXPECTED.test(error.message)) faults.push(`${name}: ${error.message}`);
      await pause(5);
    }
  }
}

async function denied(name, ask) {
  try {
    faults.push(`${name} is answered ${await ask()}`);
  } catch (error) {
    if (!error.message.startsWith('NOPERM')) faults.push(`${name}: ${error.message}`);
  }
}

async function main() {
  const loads = [];
  for (const port of ports) {
    const io = new Redis({
      host: '127.0.0.1', port: Number(port), username, password, tls, retryStrategy: again, maxRetriesPerRequest: null,
    });
    // Each error also fails the request that it concerns.
    io.on('error', () => {});
    const node = createClient({
      url: `rediss://${username}:${password}@127.0.0.1:${port}`, socket: { ...tls, tls: true, reconnectStrategy: again },
    });
    node.on('error', () => {});
    await node.connect();
    await denied(`ioredis ${port}, a key of others`, () => io.set('other', 'x'));
    await denied(`node-redis ${port}, a key of others`, () => node.set('other', 'x'));
    await denied(`ioredis ${port}, FAILOVER`, () => io.call('FAILOVER'));
    for (const [kind, client] of [['ioredis', io], ['node-redis', node]]) {
      loads.push(load(`${kind}-${port}`, (key, value) => client.set(key, value), (key) => client.get(key)));
    }
  }
  const shown = setInterval(() => console.log(JSON.stringify({ done, faults: faults.slice(0, 5) })), 100);
  process.stdin.resume();
  await new Promise((resolve) => process.stdin.on('end', resolve));
  isOver = true;
  await Promise.all(loads);
  clearInterval(shown);
  console.log(JSON.stringify({ done, faults }));
  process.exit(0);
}

main().catch((error) => {
  console.log(JSON.stringify({ done, faults: [String(error)] }));
  process.exit(1);
});
