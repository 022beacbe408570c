// ioredis and node-redis over TLS, as a user with a password: each writes a key of its own and reads it back, over and over.
//
// clients.js DIRECTORY PORT PORT SENTINEL SENTINEL: the certificates are in DIRECTORY. One more of each kind knows the ports of
// the Sentinels alone, and follows the master that serves. Prints how often each has succeeded, as JSON, a line at a
// time; after the end of its input what went wrong, too.
'use strict';
const fs = require('fs');
const path = require('path');
const [directory, ...given] = process.argv.slice(2);
const ports = given.slice(0, 2);
const sentinels = given.slice(2).map((port) => ({ host: '127.0.0.1', port: Number(port) }));
const library = (name) => require(require.resolve(name, { paths: [directory] }));
const Redis = library('ioredis');
const { createClient, createSentinel } = library('redis');

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
  const io = new Redis({
    sentinels, name: 'dsm', username, password, tls, enableTLSForSentinelMode: true, sentinelTLS: tls,
    sentinelUsername: username, sentinelPassword: password, retryStrategy: again, sentinelRetryStrategy: again,
    maxRetriesPerRequest: null,
  });
  io.on('error', () => {});
  loads.push(load('ioredis-sentinel', (key, value) => io.set(key, value), (key) => io.get(key)));
  const options = { username, password, socket: { ...tls, tls: true, reconnectStrategy: again } };
  const node = createSentinel({
    name: 'dsm', sentinelRootNodes: sentinels, nodeClientOptions: options, sentinelClientOptions: options,
  });
  node.on('error', () => {});
  await node.connect();
  loads.push(load('node-redis-sentinel', (key, value) => node.set(key, value), (key) => node.get(key)));
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
