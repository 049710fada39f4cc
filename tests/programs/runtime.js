// Stages: ready, (byte) leaked, (byte) end. Five blocks of 123,457 bytes by malloc, from two
// functions; what is called often is not compiled differently in between.
'use strict';
const kept = [];
function leakHere() {
  kept.push(Buffer.allocUnsafeSlow(123457));
}
function callLeak() {
  for (let i = 0; i < 5; i++) leakHere();
}
const say = (stage) => process.stdout.write(JSON.stringify({ stage }) + '\n');
let stage = 0;
process.stdin.on('data', () => {
  stage += 1;
  if (stage > 1) process.exit(0);
  callLeak();
  say('leaked');
});
process.stdin.on('end', () => process.exit(0));
say('ready');
