"""A script with the argument flow of upstream's generate.py: parse, build wan.WanT2V from a folder, generate, save."""

import argparse
import os

import torch
import torch.distributed as dist
import wan
from wan.configs import SIZE_CONFIGS, WAN_CONFIGS


def parse():
    parser = argparse.ArgumentParser()
    parser.add_argument("--task", default="t2v-A14B", choices=list(WAN_CONFIGS))
    parser.add_argument("--size", default="1280*720")
    parser.add_argument("--frame_num", type=int, default=None)
    parser.add_argument("--ckpt_dir", default=None)
    parser.add_argument("--offload_model", type=lambda text: text.lower() == "true", default=None)
    parser.add_argument("--ulysses_size", type=int, default=1)
    parser.add_argument("--prompt", default=None)
    parser.add_argument("--base_seed", type=int, default=-1)
    parser.add_argument("--sample_solver", default="unipc")
    parser.add_argument("--sample_steps", type=int, default=None)
    parser.add_argument("--sample_shift", type=float, default=None)
    parser.add_argument("--save_file", default=None)
    return parser.parse_args()


def main():
    arguments = parse()
    rank, world_size = int(os.getenv("RANK", "0")), int(os.getenv("WORLD_SIZE", "1"))
    if world_size > 1:
        dist.init_process_group("gloo")  # upstream's nccl needs GPUs
    config = WAN_CONFIGS[arguments.task]
    print(f"rank {rank}: creating the pipeline from {os.path.basename(arguments.ckpt_dir)}", flush=True)
    pipeline = wan.WanT2V(
        config=config,
        checkpoint_dir=arguments.ckpt_dir,
        device_id=0,
        rank=rank,
        t5_fsdp=False,
        dit_fsdp=False,
        use_sp=arguments.ulysses_size > 1,
        t5_cpu=False,
        convert_model_dtype=False,
    )
    if arguments.size in SIZE_CONFIGS:
        size = SIZE_CONFIGS[arguments.size]
    else:
        size = tuple(int(part) for part in arguments.size.split("*"))  # upstream knows no sizes this small
    video = pipeline.generate(
        arguments.prompt,
        size=size,
        frame_num=arguments.frame_num or config.frame_num,
        shift=arguments.sample_shift or config.sample_shift,
        sample_solver=arguments.sample_solver,
        sampling_steps=arguments.sample_steps or config.sample_steps,
        guide_scale=config.sample_guide_scale,
        seed=arguments.base_seed,
        offload_model=bool(arguments.offload_model),
    )
    if rank == 0 and arguments.save_file:
        torch.save(video, arguments.save_file)


if __name__ == "__main__":
    main()
