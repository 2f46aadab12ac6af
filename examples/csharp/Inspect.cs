// Inspects a picture with a model that `offnominal export --single-graph` wrote; see README.md.
using System;
using System.IO;
using Microsoft.ML.OnnxRuntime;

static class Inspect
{
    // The pixels of a binary PPM (P6, 8 bits, no comments) of the size that is asked for.
    static byte[] ReadPpm(string path, long height, long width)
    {
        using var file = File.OpenRead(path);
        string Word()
        {
            var word = "";
            for (int next = file.ReadByte(); next > ' '; next = file.ReadByte()) word += (char)next;
            return word;
        }
        string kind = Word(), columns = Word(), rows = Word(), largest = Word();
        if (kind != "P6" || largest != "255")
            throw new InvalidDataException($"{path}: is no binary PPM of 8 bits");
        if (columns != $"{width}" || rows != $"{height}")
            throw new InvalidDataException($"{path}: the model takes {width} x {height} pixels only");
        var pixels = new byte[height * width * 3];
        for (int done = 0, got; done < pixels.Length; done += got)
            if ((got = file.Read(pixels, done, pixels.Length - done)) == 0)
                throw new InvalidDataException($"{path}: ends too early");
        return pixels;
    }

    static int Main(string[] given)
    {
        if (given.Length != 3)
        {
            Console.Error.WriteLine("Inspect MODEL.onnx PICTURE.ppm MAP.pgm");
            return 2;
        }
        using var session = new InferenceSession(given[0]);
        int[] size = session.InputMetadata["image"].Dimensions;
        long[] shape = { size[0], size[1], 3 };
        using var image = OrtValue.CreateTensorValueFromMemory(ReadPpm(given[1], size[0], size[1]), shape);
        using var options = new RunOptions();
        string[] names = { "score", "map", "is_anomalous", "threshold" };
        using var found = session.Run(options, new[] { "image" }, new[] { image }, names);
        float score = found[0].GetTensorDataAsSpan<float>()[0];
        float limit = found[3].GetTensorDataAsSpan<float>()[0];
        bool anomalous = found[2].GetTensorDataAsSpan<bool>()[0];
        Console.WriteLine($"score {score}, threshold {limit}: {(anomalous ? "REJECT" : "good")}");
        var map = found[1].GetTensorDataAsSpan<float>();  // white: twice the threshold or more
        var grey = new byte[map.Length];
        for (int i = 0; i < grey.Length; i++) grey[i] = (byte)Math.Clamp(map[i] / limit * 127.5f, 0, 255);
        using var file = File.Create(given[2]);
        file.Write(System.Text.Encoding.ASCII.GetBytes($"P5\n{size[1]} {size[0]}\n255\n"));
        file.Write(grey);
        return anomalous ? 1 : 0;
    }
}
